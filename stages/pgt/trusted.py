"""Boxes of people in the place of pseudo boxes: corrected ones, or some that existed from the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.core.artifacts.coco_json import ForeignBoxes
from stages.core.errors import SchemaError
from stages.core.structures.detections import Detections


def trusted_boxes(
    taken: ForeignBoxes, sizes: Mapping[str, tuple[int, int]], path: Path
) -> dict[str, Detections]:
    """Boxes of the images that people have looked at, with score 1, clipped to their image.

    Args:
        taken: What a file has of the split; an image it lists without a box shows none.
        sizes: Image id -> (height, width) in pixels, of the images that can be read.
        path: The file, for messages.

    Raises:
        SchemaError: a box outside its image, or a file made for images of another size.
    """
    found = {}
    for image_id, boxes in taken.boxes.items():
        if image_id not in sizes:
            continue  # recorded as failed
        height, width = sizes[image_id]
        claimed = taken.sizes.get(image_id)
        if claimed is not None and claimed != (height, width):
            raise SchemaError(
                f"says that image {image_id} is {claimed[1]} x {claimed[0]} pixels, but it is {width} x {height}",
                where=path,
                hint="its boxes are those of a resized copy; use the images of the data set",
            )
        limits = np.array([width, height, width, height], np.float32)
        clipped = np.clip(boxes.boxes_xyxy, 0, limits)
        if (clipped[:, 2:] <= clipped[:, :2]).any():
            raise SchemaError(
                f"a box of image {image_id} has no area inside its {width} x {height} pixels",
                where=path,
                hint="correct or remove the box",
            )
        found[image_id] = replace(
            boxes, boxes_xyxy=clipped, scores=np.ones(len(boxes), np.float32), masks=None
        )
    return found
