"""Boxes with class names on images: what the pictures of `wsod`, `pgt` and `retrain` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stages.core.datasets.split import WeakSplit
from stages.core.structures.detections import Detections
from stages.core.viz.drawing import Picture, draw_boxes
from stages.core.viz.palette import class_color
from stages.core.viz.stage_pictures import draw_each


def draw_detections(
    boxes: Mapping[str, Detections],
    split: WeakSplit,
    ids: Sequence[str],
    folder: Path,
    shown: Callable[[Detections], Detections] | None = None,
) -> list[Path]:
    """Draw the boxes of some images, one PNG each.

    Args:
        boxes: Image id -> boxes.
        split: Where the images are.
        ids: Which images.
        folder: Where the pictures go.
        shown: Chooses among them, and labels then carry scores; None shows all, without scores.
    """

    def render(image_id: str, picture: Picture, factor: float) -> Picture:
        found = boxes.get(image_id, Detections.empty())
        found = found if shown is None else shown(found)
        classes = found.classes.tolist()
        scores = [""] * len(found) if shown is None else [f" {s:.2f}" for s in found.scores.tolist()]
        labels = [split.classes[c] + score for c, score in zip(classes, scores, strict=True)]
        colors = [class_color(c) for c in classes]
        return draw_boxes(picture, found.boxes_xyxy * factor, colors, labels)

    return draw_each(split, ids, folder, render)
