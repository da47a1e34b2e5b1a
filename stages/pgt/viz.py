"""Pictures of `pgt`: the pseudo boxes of each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.core.artifacts.coco_json import read_dataset
from stages.core.datasets.split import WeakSplit
from stages.core.viz.detection_pictures import draw_detections


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw the pseudo boxes of some images, one PNG each.

    Args:
        out: the stage's output folder.
        split: where the images are.
        ids: which images.
        folder: where the pictures go.
    """
    return draw_detections(read_dataset(out / "pgt.json", split).boxes, split, ids, folder)
