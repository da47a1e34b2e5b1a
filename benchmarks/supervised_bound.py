"""How close weak supervision comes: the same detectors trained on true boxes and masks.

Writes the ground truth of the train split as a data set in the format of `pgt.json`, gives it to the stages `retrain`
and `wsis` with the settings of a finished run (RoI drop off: there are no wrong boxes to drop) on the images it ran on,
and compares both on the test split. The ground truth never enters the run it is compared with.

    python -m benchmarks.supervised_bound --run runs/shapes --train shapes_train --test shapes_test
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.core.artifacts.coco_json import write_dataset
from stages.core.artifacts.manifest import MANIFEST_NAME, read_manifest
from stages.core.config import StageConfig, config_class
from stages.core.datasets.catalog import data_root, open_split
from stages.core.errors import UsageError
from stages.core.evaluation.ground_truth.load import load_ground_truth
from stages.core.evaluation.ground_truth.types import ImageGroundTruth
from stages.core.evaluation.tasks import load_labeled_split, measure
from stages.core.formatting import format_number
from stages.core.registry import load_stage
from stages.core.runtime.execute import execute
from stages.core.runtime.request import Request
from stages.core.structures.detections import Detections

SHOWN = {
    "retrain": ("detections", "detections.json", ("ap50", "coco_ap")),
    "wsis": ("segmentations", "segmentations.json", ("mask_ap50", "mask_ap75", "box_ap50")),
}
"""Stage -> task, artifact, metrics compared."""

CHANGED = {"retrain": {"roi_drop": "off"}, "wsis": {"mask_source": "given"}}
"""What differs from the weak run's settings."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    run: Path
    out: Path
    data: Path
    train: str
    test: str
    stages: tuple[str, ...]
    device: str
    seed: int


@dataclass(frozen=True)
class Comparison:
    """One metric of one stage: trained on pseudo ground truth (None: not run yet) and on the ground truth."""

    stage: str
    metric: str
    weak: float | None
    supervised: float

    @property
    def ratio(self) -> float | None:
        """Weak over supervised."""
        return None if self.weak is None or self.supervised == 0 else self.weak / self.supervised


def write_ground_truth(split_name: str, data: Path, path: Path, limit: int | None = None) -> Path:
    """Write the true boxes and masks of a train split, or of its first images, in the format of `pgt.json`.

    Difficult objects and crowds are left out, as the pseudo ground truth knows neither.
    """
    split = open_split(split_name, data)
    split = split if limit is None else split.limited(limit)
    ground_truth = load_ground_truth(split_name, data, ids=frozenset(split.ids))
    boxes = {image_id: _as_pseudo(image) for image_id, image in ground_truth.images.items()}
    sizes = {image_id: (image.height, image.width) for image_id, image in ground_truth.images.items()}
    write_dataset(path, split, boxes, sizes, {"description": "ground truth, for a supervised bound only"})
    return path


def _as_pseudo(image: ImageGroundTruth) -> Detections:
    objects = Detections(
        image.boxes_xyxy.astype(np.float32), image.classes, np.ones(len(image), np.float32), image.masks
    )
    return objects[~image.difficult & ~image.crowd]


def settings_of(run: Path, stage: str, train: str) -> StageConfig:
    """The settings a finished run used, changed as `CHANGED` says; the defaults if it did not run this stage."""
    model = config_class(stage)
    folder = run / stage / train
    used = dict(read_manifest(folder).config) if (folder / MANIFEST_NAME).is_file() else {}
    return model.model_validate(used | CHANGED[stage])


def limit_of(run: Path, split: str) -> int | None:
    """How many images of a split the run's stages worked on; None for all, or if none ran.

    Raises:
        UsageError: its stages worked on different numbers of images.
    """
    folders = [path.parent for path in sorted(run.glob(f"*/{split}/{MANIFEST_NAME}"))]
    limits = {read_manifest(folder).limit for folder in folders}
    if len(limits) > 1:
        raise UsageError(f"stages ran on different numbers of images of {split}: {limits}", where=run)
    return limits.pop() if limits else None


def train_bound(options: Options, stage: str, ground_truth: Path) -> Path:
    """Train a stage on the ground truth, apply it to the test split, and return the test split's folder."""
    config = settings_of(options.run, stage, options.train)
    folder = options.out
    for split in (options.train, options.test):
        execute(
            load_stage(stage),
            config,
            Request(
                split=split,
                run=folder,
                data=options.data,
                overrides={"pgt": ground_truth} if split == options.train else {},
                limit=limit_of(options.run, split),
                resume=True,
                overwrite=True,
                device=options.device,
                precision="auto",
                seed=options.seed,
                workers=None,
            ),
        )
    return folder / stage / options.test


def compare(options: Options) -> list[Comparison]:
    """Train and measure the bound of every stage asked for."""
    ground_truth = write_ground_truth(
        options.train,
        options.data,
        options.out.parent / f"{options.out.name}-ground-truth" / "pgt.json",
        limit_of(options.run, options.train),
    )
    labeled = load_labeled_split(options.test, options.data, limit_of(options.run, options.test))
    found: list[Comparison] = []
    for stage in options.stages:
        task, name, metrics = SHOWN[stage]
        bound = measure(task, train_bound(options, stage, ground_truth) / name, labeled).metrics
        weak_path = options.run / stage / options.test / name
        weak = measure(task, weak_path, labeled).metrics if weak_path.is_file() else {}
        found += [Comparison(stage, metric, weak.get(metric), bound[metric]) for metric in metrics]
    return found


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="supervised upper bound of retrain and wsis")
    parser.add_argument("--run", type=Path, default=Path("runs/shapes"), help="finished run to compare with")
    parser.add_argument("--out", type=Path, help="where the bound is trained; default <run>-supervised")
    parser.add_argument("--data", type=Path, help="folder of data sets; default $WEAKSAM_DATA, else ./data")
    parser.add_argument("--train", default="shapes_train", help="split to train on")
    parser.add_argument("--test", default="shapes_test", help="split to measure on")
    parser.add_argument("--stages", nargs="+", choices=sorted(SHOWN), default=sorted(SHOWN))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    return Options(
        run=given.run,
        out=given.out or given.run.with_name(given.run.name + "-supervised"),
        data=data_root(given.data),
        train=given.train,
        test=given.test,
        stages=tuple(given.stages),
        device=given.device,
        seed=given.seed,
    )


def main() -> None:
    """Print the table and write it beside the bound as `supervised_bound.json`."""
    options = parse()
    found = compare(options)
    print(f"{'stage':8} {'metric':10} {'weak':>7} {'supervised':>11} {'ratio':>7}")
    for row in found:
        weak = format_number(row.weak)
        ratio = "–" if row.ratio is None else f"{row.ratio:.1%}"
        print(f"{row.stage:8} {row.metric:10} {weak:>7} {format_number(row.supervised):>11} {ratio:>7}")
    rows = [
        {"stage": r.stage, "metric": r.metric, "weak": r.weak, "supervised": r.supervised, "ratio": r.ratio}
        for r in found
    ]
    (options.out / "supervised_bound.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
