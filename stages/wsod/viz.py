"""Pictures of `wsod`: the detections of each image that come near the best of their class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.coco_json import Detections, read_results
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.viz.drawing import draw_boxes, enlarged, save_png
from stages.core.viz.palette import class_color

SHARE_OF_CLASS_BEST = 0.5
SHARE_OF_IMAGE_BEST = 0.2


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw the strongest detections of some images, one PNG each.

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
        shown = strongest(found)
        classes = [int(c) for c in found.classes[shown]]
        scores = found.scores[shown].tolist()
        labels = [f"{split.classes[c]} {score:.2f}" for c, score in zip(classes, scores, strict=True)]
        colors = [class_color(c) for c in classes]
        paths.append(folder / f"{image_id}.png")
        save_png(paths[-1], draw_boxes(picture, found.boxes_xyxy[shown] * factor, colors, labels))
    return paths


def strongest(found: Detections) -> NDArray[np.int64]:
    """Rows worth showing, best first: scores of this stage mean much beside one another and little by themselves."""
    best = np.zeros(1 + int(found.classes.max(initial=0)), np.float32)
    np.maximum.at(best, found.classes, found.scores)
    enough = found.scores >= np.maximum(
        SHARE_OF_CLASS_BEST * best[found.classes], SHARE_OF_IMAGE_BEST * best.max()
    )
    rows = np.flatnonzero(enough)
    return rows[np.argsort(-found.scores[rows], kind="stable")]
