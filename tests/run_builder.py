"""A run folder made by hand: drawn images, artifacts near the ground truth, manifests as the stages write them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stages.core.artifacts.coco_json import write_dataset, write_results
from stages.core.artifacts.evidence import ProposalEvidence, evidence_pools
from stages.core.artifacts.manifest import Manifest, write_manifest
from stages.core.artifacts.schemas import CAMS, PROMPTS, PROPOSALS
from stages.core.artifacts.table import ImageRows, gather, write_table
from stages.core.datasets.catalog import open_split
from stages.core.datasets.shapes.dataset import write_shapes
from stages.core.datasets.split import WeakSplit
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.tasks import load_labeled_split
from stages.core.registry import stage_spec
from stages.core.structures.detections import Detections


def draw_toy_data(root: Path, train: int = 6, test: int = 3) -> None:
    """A few drawn images under ``<root>/toy``, in VOC layout."""
    write_shapes(root, {"train": train, "val": 1, "test": test})
    (root / "shapes").rename(root / "toy")


def build_run(run: Path, root: Path, split_name: str, stages: Iterable[str]) -> None:
    """Write finished stages of one split; boxes are the true ones moved by a few pixels."""
    split, ground_truth = open_split(split_name, root), load_labeled_split(split_name, root).images
    for stage in stages:
        folder = run / stage / split_name
        folder.mkdir(parents=True)
        names = stage_spec(stage).output_names(split.role)
        files = tuple(name for name in names if not name.endswith(".safetensors"))
        for name in files:
            _write(folder / name, split, ground_truth)
        if stage in ("cam", "wsod", "retrain", "wsis") and split.role == "train":
            lines = [
                {
                    "phase": "train",
                    "step": s,
                    "epoch": 0,
                    "loss": 2.0 / (1 + s / 20),
                    "loss_cls": 1.0 / (1 + s),
                }
                for s in range(0, 400, 20)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_manifest(
            folder,
            Manifest(
                stage=stage, split=split_name, config={"epochs": 3, "threshold": 0.9}, seed=0,
                version="0.1.0", git=None, command=["weaksam", stage, "--split", split_name],
                outputs=dict.fromkeys(files, ""), counts={"images": len(split.ids), "failed": 0},
                environment={"python": "3"}, wall_seconds=12.5, images_per_second=3.0,
            ),
        )  # fmt: skip


def _write(path: Path, split: WeakSplit, ground_truth: dict[str, ImageGroundTruth]) -> None:
    if path.suffix == ".h5":
        schema, make = {
            "cams.h5": (CAMS, _map_rows),
            "prompts.h5": (PROMPTS, _prompt_rows),
            "proposals.h5": (PROPOSALS, _proposal_rows),
        }[path.name]
        write_table(path, schema, gather(schema, {i: make(ground_truth[i]) for i in split.ids}))
        return
    boxes = {i: _moved(ground_truth[i], masks=path.name != "detections.json") for i in split.ids}
    if path.name.startswith("pgt"):
        write_dataset(
            path, split, boxes, {i: (ground_truth[i].height, ground_truth[i].width) for i in split.ids}
        )
    else:
        write_results(path, split, boxes)


def _moved(ground_truth: ImageGroundTruth, *, masks: bool) -> Detections:
    shift = np.random.default_rng(len(ground_truth)).normal(0, 3, ground_truth.boxes_xyxy.shape)
    boxes = (ground_truth.boxes_xyxy + shift).astype(np.float32)
    scores = np.linspace(0.95, 0.3, len(ground_truth)).astype(np.float32)
    return Detections(
        boxes, ground_truth.classes.astype(np.int64), scores, ground_truth.masks if masks else None
    )


def _centres(ground_truth: ImageGroundTruth) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return (ground_truth.boxes_xyxy[:, :2] + ground_truth.boxes_xyxy[:, 2:]) / 2


def _map_rows(ground_truth: ImageGroundTruth) -> ImageRows:
    classes, grid = sorted(set(ground_truth.classes.tolist())), 20
    ys, xs = np.mgrid[0:grid, 0:grid] + 0.5
    rows = [(c, kind, layer) for c in classes for kind, layer in ((0, -1), (1, -1), (2, 4), (2, 5))]
    maps = []
    for c, kind, _ in rows:
        values = np.zeros((grid, grid))
        for x, y in _centres(ground_truth)[ground_truth.classes == c]:
            far = (xs / grid * ground_truth.width - x) ** 2 + (ys / grid * ground_truth.height - y) ** 2
            values = np.maximum(values, np.exp(-far / (600 + 900 * kind)))
        maps.append(values.astype(np.float16))
    index = np.array(rows).reshape(-1, 3)
    columns = {"class_index": index[:, 0], "kind": index[:, 1], "layer": index[:, 2], "head": index[:, 2]}
    columns |= {"grid_h": np.full(len(rows), grid), "grid_w": np.full(len(rows), grid)}
    return ImageRows(
        columns, {"image_h": ground_truth.height, "image_w": ground_truth.width}, {"values": maps}
    )


def _prompt_rows(ground_truth: ImageGroundTruth) -> ImageRows:
    xy, n = _centres(ground_truth), len(ground_truth)
    columns = {"x": xy[:, 0], "y": xy[:, 1], "class_index": ground_truth.classes, "score": np.ones(n)}
    columns |= {name: np.full(n, -1) for name in ("layer", "head", "cluster")}
    columns["source"] = np.arange(n) % 3
    return ImageRows(columns, {"image_h": ground_truth.height, "image_w": ground_truth.width})


def _proposal_rows(ground_truth: ImageGroundTruth) -> ImageRows:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.7, (40, 2)) * (ground_truth.width, ground_truth.height)
    grid = np.concatenate([corner, corner + rng.uniform(10, 80, (40, 2))], axis=1)
    boxes = np.concatenate([ground_truth.boxes_xyxy, grid])
    n = len(boxes)
    source = np.r_[2 << (np.arange(len(ground_truth)) % 3), np.ones(40, int)]
    columns = dict(zip(("x1", "y1", "x2", "y2"), boxes.T, strict=True))
    columns |= {"source": source, "class_index": np.full(n, -1), "mask_index": np.zeros(n)}
    columns |= {name: np.ones(n) for name in ("peak_score", "predicted_iou", "stability")}
    empty = [np.zeros(0, np.uint8)] * n
    pools = {"rle": empty} | evidence_pools(ProposalEvidence.empty(n))
    return ImageRows(columns, {"image_h": ground_truth.height, "image_w": ground_truth.width}, pools)
