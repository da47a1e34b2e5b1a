"""Pictures of `predict`: masks, boxes, names and scores on every image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.core.structures.detections import Detections
from stages.core.structures.rle import decode_masks
from stages.core.viz.drawing import draw_boxes, enlarged, overlay_masks
from stages.core.viz.palette import class_color

PICTURES = "viz"
PICTURE_SIDES = (480, 1280)
"""Pictures have a long side in this range: labels stay legible, files stay small."""


def draw_detections(
    pixels_HW3: NDArray[np.uint8], found: Detections, classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw masks, boxes, names and scores on an image; the highest-scoring detection lies on top."""
    least, most = PICTURE_SIDES
    picture, factor = enlarged(pixels_HW3, int(np.clip(max(pixels_HW3.shape[:2]), least, most)))
    colors = [class_color(int(c)) for c in found.classes]
    if found.masks:
        size = (picture.shape[1], picture.shape[0])
        whole = decode_masks(found.masks, *pixels_HW3.shape[:2])
        masks = np.stack([cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) for mask in whole])
        picture = overlay_masks(picture, masks, colors)
    labels = [
        f"{classes[c]} {score:.2f}"
        for c, score in zip(found.classes.tolist(), found.scores.tolist(), strict=True)
    ]
    return draw_boxes(picture, found.boxes_xyxy * factor, colors, labels)


def picture_names(ids: Sequence[str]) -> dict[str, str]:
    """Return the name of each image's picture: `.png` instead of the suffix, or after it where two would collide."""
    whole: set[str] = set()
    while True:
        names = {i: f"{i}.png" if i in whole else str(Path(i).with_suffix(".png")) for i in ids}
        taken = Counter(name.lower() for name in names.values())
        # A name made longer may be another image's, hence once more: a.jpg, a.png and a.jpg.png.
        colliding = {i for i, name in names.items() if taken[name.lower()] > 1} - whole
        if not colliding:
            return names
        whole |= colliding
