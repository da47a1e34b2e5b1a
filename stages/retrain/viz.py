"""Pictures of `retrain`: the detections of each image, the better the brighter its label says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.core.artifacts.coco_json import Detections, read_results
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.viz.drawing import draw_boxes, enlarged, save_png
from stages.core.viz.palette import class_color

MIN_SCORE = 0.3


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw the detections above `MIN_SCORE` of some images, one PNG each.

    Args:
        out: the stage's output folder.
        split: where the images are.
        ids: which images.
        folder: where the pictures go.
    """
    detections = read_results(out / "detections.json", split)
    paths = []
    for image_id in ids:
        found = detections.get(image_id, Detections.empty())
        picture, factor = enlarged(load_image(split.image_path(image_id)))
        shown = [i for i in range(len(found)) if found.scores[i] >= MIN_SCORE]
        classes = [int(found.classes[i]) for i in shown]
        labels = [f"{split.classes[c]} {found.scores[i]:.2f}" for c, i in zip(classes, shown, strict=True)]
        picture = draw_boxes(
            picture, found.boxes_xyxy[shown] * factor, [class_color(c) for c in classes], labels
        )
        paths.append(folder / f"{image_id}.png")
        save_png(paths[-1], picture)
    return paths
