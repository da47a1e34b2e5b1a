"""Pictures of `pgt`: the pseudo boxes of each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.core.artifacts.coco_json import Detections, read_dataset
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.viz.drawing import draw_boxes, enlarged, save_png
from stages.core.viz.palette import class_color


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw the pseudo boxes of some images, one PNG each.

    Args:
        out: the stage's output folder.
        split: where the images are.
        ids: which images.
        folder: where the pictures go.
    """
    pseudo = read_dataset(out / "pgt.json", split)
    paths = []
    for image_id in ids:
        found = pseudo.get(image_id, Detections.empty())
        picture, factor = enlarged(load_image(split.image_path(image_id)))
        classes = [int(c) for c in found.classes]
        labels = [split.classes[c] for c in classes]
        colors = [class_color(c) for c in classes]
        paths.append(folder / f"{image_id}.png")
        save_png(paths[-1], draw_boxes(picture, found.boxes_xyxy * factor, colors, labels))
    return paths
