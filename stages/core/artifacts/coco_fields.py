"""The fields of one COCO entry, checked: box, score and mask. Shared by artifacts and the reader of the ground truth.

Every check raises ValueError with words that follow the name of the entry, as in "annotation 3 has bbox ...".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stages.core.structures.rle import RLE, check_rle, rle_as_text

MOST_POINTS = 100_000
"""Points of one polygon."""
FARTHEST_POINT = 100_000.0
"""Pixels; pycocotools draws polygons point by point in 32-bit numbers."""


def is_finite(value: Any) -> bool:
    """Whether a value of a JSON file is a number, neither NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def box_xywh(entry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, width and height, pixels.

    Raises:
        ValueError: no four finite numbers, or a negative size.
    """
    bbox = entry.get("bbox")
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(is_finite(value) for value in bbox)):
        raise ValueError(f"has bbox {bbox!r}, expected [x, y, width, height], all finite")
    x, y, width, height = (float(value) for value in bbox)
    if width < 0 or height < 0:
        raise ValueError(f"has bbox {bbox!r} of negative width or height")
    return x, y, width, height


def score_of(entry: Mapping[str, Any], default: float | None = None) -> float:
    """The score, or a default where there is none.

    Raises:
        ValueError: not a finite number, or absent without a default.
    """
    score = entry.get("score", default)
    if not is_finite(score):
        raise ValueError(f"has score {score!r}, expected a finite number")
    return float(score)


def is_set(entry: Mapping[str, Any], flag: str) -> bool:
    """Whether a flag such as ``iscrowd`` is 1; some tools write it as text, or leave it out.

    Raises:
        ValueError: neither 0 nor 1.
    """
    value = entry.get(flag)
    if value not in (None, "", 0, "0", 1, "1"):
        raise ValueError(f"has {flag} {value!r}, expected 0 or 1")
    return value in (1, "1")


def mask_of(segmentation: Any, height: int, width: int) -> RLE:
    """Polygons, plain or compressed run lengths as compressed ones.

    Raises:
        ValueError: none of these, or not of an image of that size.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        return rle_as_text(coco_mask.merge(coco_mask.frPyObjects(_polygons(segmentation), height, width)))
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        size = segmentation.get("size") if isinstance(segmentation, dict) else segmentation
        raise ValueError(f"has a mask of size {size!r}, but its image is [{height}, {width}]")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        check_rle(counts, height, width)
        return {"size": [height, width], "counts": counts}
    whole = isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)
    if not whole or sum(counts or []) != height * width:
        raise ValueError(f"has run lengths that do not add up to {height} x {width} pixels")
    return rle_as_text(coco_mask.frPyObjects(segmentation, height, width))


def _polygons(segmentation: list[Any]) -> list[list[float]]:
    """Return the polygons that have an area; some tools leave specks of one or two points beside them.

    Raises:
        ValueError: there is none, or numbers that are no polygon of an image.
    """
    for polygon in segmentation:
        numbers = isinstance(polygon, list) and all(is_finite(value) for value in polygon)
        if not numbers or len(polygon) % 2:
            raise ValueError("has a polygon that is not a list of at least three x, y pairs")
        if len(polygon) > 2 * MOST_POINTS:
            raise ValueError(f"has a polygon of {len(polygon) // 2:,} points, more than {MOST_POINTS:,}")
        if polygon and max(map(abs, polygon)) > FARTHEST_POINT:
            raise ValueError(
                f"has a polygon that reaches {max(map(abs, polygon)):g} pixels, far from any image"
            )
    # Four numbers would be taken for a box by pycocotools.
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        raise ValueError("has a polygon that is not a list of at least three x, y pairs")
    return polygons
