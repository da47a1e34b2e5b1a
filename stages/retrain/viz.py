"""Pictures of `retrain`: the detections of each image that the detector is fairly sure of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.core.artifacts.coco_json import read_results
from stages.core.datasets.split import WeakSplit
from stages.core.viz.detection_pictures import draw_detections

MIN_SCORE = 0.3


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw the detections above `MIN_SCORE` of some images, one PNG each.

    Args:
        out: the stage's output folder.
        split: where the images are.
        ids: which images.
        folder: where the pictures go.
    """
    found = read_results(out / "detections.json", split)
    return draw_detections(found, split, ids, folder, lambda one: one.reaching(MIN_SCORE))
