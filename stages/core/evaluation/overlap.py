"""Overlaps between what was found and what is true in one image: boxes, masks, points."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stages.core.errors import InputError, SchemaError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.ops.boxes import pairwise_iou
from stages.core.structures.detections import Detections

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def box_iou(a_xyxy: NDArray[np.floating[Any]], b_xyxy: NDArray[np.floating[Any]]) -> FloatArray:
    """IoU of ``(n, 4)`` with ``(m, 4)`` half-open boxes, float64 ``(n, m)``."""
    first = torch.from_numpy(np.ascontiguousarray(a_xyxy, dtype=np.float64)).reshape(-1, 4)
    second = torch.from_numpy(np.ascontiguousarray(b_xyxy, dtype=np.float64)).reshape(-1, 4)
    result: FloatArray = pairwise_iou(first, second).numpy()
    return result


def box_overlap(found: Detections, true: ImageGroundTruth) -> FloatArray:
    """Box IoU of the detections with the true objects of one image, ``(n, m)``."""
    return box_iou(found.boxes_xyxy, true.boxes_xyxy)


def mask_overlap(found: Detections, true: ImageGroundTruth) -> FloatArray:
    """Mask IoU of the detections with the true objects of one image, ``(n, m)``.

    Raises:
        SchemaError: the detections have no masks, or masks of another size than the image.
        InputError: the ground truth has no masks.
    """
    require_masks(found, true)
    if not len(found) or not len(true):
        return np.zeros((len(found), len(true)))
    found_masks, true_masks = found.masks or [], true.masks or []
    # Crowds are plain masks here: whoever calls decides to ignore what they match.
    overlap = coco_mask.iou(list(found_masks), list(true_masks), [0] * len(true_masks))
    return np.asarray(overlap, dtype=np.float64).reshape(len(found), len(true))


def require_masks(found: Detections, true: ImageGroundTruth, image_id: str | None = None) -> None:
    """Refuse to compare masks where a side has none, or where sizes differ (pycocotools would answer -1).

    Raises:
        SchemaError: the detections have no masks, or masks of another size than the image.
        InputError: the ground truth has no masks.
    """
    image = "an image" if image_id is None else f"image {image_id}"
    if len(true) and true.masks is None:
        raise InputError(f"the ground truth of {image} has no masks", hint="use box metrics")
    if len(found) and found.masks is None:
        raise SchemaError(f"the detections of {image} have no masks", hint="evaluate segmentations.json")
    for rle in found.masks or []:
        height, width = rle["size"]
        if (height, width) != (true.height, true.width):
            raise SchemaError(
                f"{image} is {true.height}x{true.width} (height x width), a mask of it {height}x{width}",
                hint="use segmentations made for these images",
            )


def points_on_objects(x: FloatArray, y: FloatArray, true: ImageGroundTruth) -> BoolArray:
    """Which points lie on which objects, ``(n, m)``: on the mask where there is one, else in the box.

    Points are image pixels, ``(n,)`` each; pixel ``(i, j)`` spans ``[j, j + 1) x [i, i + 1)``. A point
    outside the image lies on nothing.
    """
    inside = (x >= 0) & (x < true.width) & (y >= 0) & (y < true.height)
    hits = np.zeros((len(x), len(true)), dtype=np.bool_)
    if true.masks is None:
        x1, y1, x2, y2 = (true.boxes_xyxy[None, :, i] for i in range(4))
        hits[:] = (x[:, None] >= x1) & (x[:, None] < x2) & (y[:, None] >= y1) & (y[:, None] < y2)
        return hits & inside[:, None]
    columns = np.floor(np.where(inside, x, 0)).astype(np.int64)
    rows = np.floor(np.where(inside, y, 0)).astype(np.int64)
    for i, rle in enumerate(true.masks):
        hits[:, i] = coco_mask.decode(rle)[rows, columns] > 0
    return hits & inside[:, None]
