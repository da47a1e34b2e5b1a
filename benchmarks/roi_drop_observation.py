"""The observation behind RoI drop, measured: are the RoIs with high losses those whose pseudo box is wrong?

Takes the detector of a finished `retrain` run, samples RoIs of its training images as training does (no augmentation),
and computes their two raw losses against the pseudo boxes. The ground truth, opened here alone, shows which RoIs are
labeled wrongly: those without a true box of their pseudo class at an IoU of 0.5. Prints the error rate by normalized
loss, and for the drop rules the dropped fraction and how precise the drops are; writes the losses of every RoI, a JSON
of the metrics and a plot per loss (extra `bench`).

    python -m benchmarks.roi_drop_observation --run runs/shapes --split shapes_train
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.plots import bar_plot, new_figure
from stages.core.artifacts.coco_json import read_dataset
from stages.core.artifacts.manifest import read_manifest
from stages.core.datasets.catalog import data_root, open_split
from stages.core.detectors.checkpoints import DetectorFile
from stages.core.detectors.settings import Augmentation
from stages.core.detectors.training_data import PseudoGroundTruthData
from stages.core.detectors.two_stage.faster_rcnn import Detector
from stages.core.detectors.two_stage.roi_heads import roi_losses
from stages.core.errors import ImageError
from stages.core.evaluation.ground_truth.load import load_ground_truth
from stages.core.evaluation.ground_truth.types import ImageGroundTruth
from stages.core.ops.boxes import pairwise_iou
from stages.core.runtime.device import resolve_device
from stages.core.runtime.image_generators import image_streams
from stages.core.runtime.seeding import derive_seed
from stages.core.spec import FailureLog
from stages.retrain.config import RetrainConfig
from stages.retrain.roi_drop import DropRule, roi_drop

Floats = NDArray[np.float64]
RIGHT_IOU = 0.5
LOSSES = ("classification", "regression", "sum")
QUANTILES: tuple[float, ...] = (0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Rois:
    """Foreground RoIs of a split: raw losses, and whether the ground truth contradicts their pseudo label."""

    images: list[str]
    cls: Floats
    reg: Floats
    wrong: NDArray[np.bool_]

    def loss(self, name: str) -> Floats:
        """One of `LOSSES`, scaled to [0, 1] by its lowest and highest value (the sum: of the two so scaled)."""
        if name == "sum":
            return (scaled(self.cls) + scaled(self.reg)) / 2
        return scaled(self.cls if name == "classification" else self.reg)


@dataclass(frozen=True)
class Bin:
    """RoIs whose normalized loss lies in [low, high)."""

    low: float
    high: float
    rois: int
    error_rate: float | None


@dataclass(frozen=True)
class RuleMetrics:
    """What a drop rule would do to these RoIs."""

    rule: str
    dropped_fraction: float
    precision: float | None
    """Fraction of the dropped RoIs that are wrong; None if nothing is dropped."""
    recall: float | None
    """Fraction of the wrong RoIs that are dropped; None if none is wrong."""


def scaled(values: Floats) -> Floats:
    """Values in [0, 1] by lowest and highest; all zero if they are equal."""
    spread = float(np.ptp(values)) if len(values) else 0.0
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)


def error_by_loss(loss: Floats, wrong: NDArray[np.bool_], bins: int = 10) -> list[Bin]:
    """Error rate of RoIs in equal steps of their normalized loss."""
    place = np.minimum((loss * bins).astype(int), bins - 1)
    return [
        Bin(
            i / bins,
            (i + 1) / bins,
            int((place == i).sum()),
            float(wrong[place == i].mean()) if (place == i).any() else None,
        )
        for i in range(bins)
    ]


def rule_metrics(rois: Rois, name: str, rule: DropRule) -> RuleMetrics:
    """Dropped fraction, precision and recall of a rule; the whole split counts as one batch."""
    kept = roi_drop(
        torch.from_numpy(rois.cls), torch.from_numpy(rois.reg), torch.ones(len(rois.cls), dtype=torch.bool),
        rule.start_step, rule,
    )  # fmt: skip
    dropped = ((kept.cls_R == 0) | (kept.reg_R == 0)).numpy()
    hits = int((dropped & rois.wrong).sum())
    return RuleMetrics(
        name,
        float(dropped.mean()) if len(dropped) else 0.0,
        hits / int(dropped.sum()) if dropped.any() else None,
        hits / int(rois.wrong.sum()) if rois.wrong.any() else None,
    )


@torch.no_grad()
def image_rois(
    model: Detector, image: Tensor, target: dict[str, Tensor], ground_truth: ImageGroundTruth
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Raw losses of an image's foreground RoIs, and which are wrong.

    Args:
        model: In training mode, so that proposals and samples are those of training.
        image: (3, h, w) in [0, 1], resized.
        target: Pseudo boxes in the pixels of `image`.
        ground_truth: In the pixels of the original.
    """
    heads = model.roi_heads
    images, targets = model.transform([image], [target])
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features, targets)
    proposals, _, labels, deltas = heads.select_training_samples(proposals, targets)
    pooled = heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))
    logits_RC, deltas_RK = heads.box_predictor(pooled)
    cls_R, reg_R = roi_losses(logits_RC, deltas_RK, labels[0], deltas[0], heads.box_loss)
    scale = torch.tensor([image.shape[2] / ground_truth.width, image.shape[1] / ground_truth.height] * 2)
    true_T4 = (torch.from_numpy(ground_truth.boxes_xyxy).float() * scale).to(image.device)
    same_RT = labels[0][:, None] == torch.from_numpy(ground_truth.classes).to(image.device)[None] + 1
    right_R = ((pairwise_iou(proposals[0], true_T4) >= RIGHT_IOU) & same_RT).any(dim=1)
    foreground = labels[0] > 0
    return (
        cls_R[foreground].double().cpu().numpy(),
        reg_R[foreground].double().cpu().numpy(),
        (~right_R)[foreground].cpu().numpy(),
    )


def collect(
    run: Path, split_name: str, data: Path, device: str, limit: int | None
) -> tuple[Rois, RetrainConfig]:
    """RoIs of a finished run's training images, and the settings it was trained with.

    Raises:
        InputError: the run holds no finished `retrain` of Faster R-CNN, or the split has no boxes.
    """
    folder = run / "retrain" / split_name
    config = RetrainConfig.model_validate(read_manifest(folder).config)
    split = open_split(split_name, data)
    detector = DetectorFile.open(folder / "detector.safetensors")
    detector.check(split.classes, ("faster-rcnn",))
    model = cast(Detector, detector.model()).to(device).train()
    plain = Augmentation((config.test_short_side,), config.max_size, hflip_prob=0.0)
    pgt = read_dataset(run / "pgt" / split_name / "pgt.json", split).boxes
    pseudo = PseudoGroundTruthData(split, pgt, plain, 0, with_masks=False, failures=FailureLog())
    ground_truth = load_ground_truth(split_name, data).images
    ids: list[str] = []
    parts: list[tuple[Floats, Floats, NDArray[np.bool_]]] = []
    for image_id in pseudo.ids[:limit]:
        try:
            image, target = pseudo.sample(image_id, 0)
        except ImageError:
            continue
        own = {name: value.to(device) for name, value in target.items()}
        with image_streams([derive_seed(0, "observation", image_id)]):
            parts.append(image_rois(model, image.to(device), own, ground_truth[image_id]))
        ids += [image_id] * len(parts[-1][0])
    return Rois(ids, *(np.concatenate(column) for column in zip(*parts, strict=True))), config


def rules(config: RetrainConfig) -> dict[str, DropRule]:
    """The run's own rule, the published one, and quantiles, which need no scale."""
    found = {f"run: {config.roi_drop}": DropRule(config.roi_drop, config.tau_cls, config.tau_reg)}
    found["paper 4, 4"] = DropRule("paper", 4.0, 4.0)
    return found | {f"percentile {q:g}": DropRule("percentile", q, q) for q in QUANTILES}


def plot(path: Path, bins: Sequence[Bin], base_rate: float, loss: str) -> None:
    """Draw the error rate by normalized loss as bars, with the number of RoIs above each."""
    bars = [(f"{one.high:g}", one.error_rate, str(one.rois)) for one in bins]
    bar_plot(
        path, f"Wrong RoIs by {loss} loss (above each bar: RoIs)", f"normalized {loss} loss up to", "error rate",
        bars, reference=("all RoIs", base_rate),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables; write `rois.csv`, `observation.json` and one plot per loss."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/shapes"), help="run with pgt and retrain finished"
    )
    parser.add_argument("--split", default="shapes_train", help="its train split, in VOC or COCO layout")
    parser.add_argument("--data", type=Path, help="folder of data sets; default $WEAKSAM_DATA, else ./data")
    parser.add_argument("--out", type=Path, help="default <run>/roi_drop_observation")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--limit", type=int, help="only the first N images with pseudo boxes")
    options = parser.parse_args(arguments)
    new_figure()
    out = options.out or options.run / "roi_drop_observation"
    out.mkdir(parents=True, exist_ok=True)
    rois, config = collect(
        options.run, options.split, data_root(options.data), resolve_device(options.device), options.limit
    )
    base = float(rois.wrong.mean())
    print(f"{len(rois.wrong)} foreground RoIs of {len(set(rois.images))} images, {base:.1%} wrong")
    metrics: dict[str, object] = {"rois": len(rois.wrong), "wrong_fraction": base}
    for name in LOSSES:
        bins = error_by_loss(rois.loss(name), rois.wrong)
        metrics[name] = [asdict(one) for one in bins]
        plot(out / f"{name}.png", bins, base, name)
        rates = "  ".join("   –" if one.error_rate is None else f"{one.error_rate:4.0%}" for one in bins)
        print(f"error rate by {name:14s} loss, ten equal steps: {rates}")
    found = [rule_metrics(rois, name, rule) for name, rule in rules(config).items()]
    metrics["rules"] = [asdict(one) for one in found]
    print(f"{'rule':16s} {'dropped':>8s} {'precision':>10s} {'recall':>7s}")
    for one in found:
        precision = "–" if one.precision is None else f"{one.precision:.1%}"
        recall = "–" if one.recall is None else f"{one.recall:.1%}"
        print(f"{one.rule:16s} {one.dropped_fraction:8.2%} {precision:>10s} {recall:>7s}")
    (out / "observation.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    rows = zip(rois.images, rois.cls, rois.reg, rois.wrong, strict=True)
    lines = [f"{image},{cls:.5f},{reg:.5f},{int(wrong)}" for image, cls, reg, wrong in rows]
    (out / "rois.csv").write_text(
        "\n".join(["image,loss_cls,loss_reg,wrong", *lines]) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
