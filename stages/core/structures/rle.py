"""Binary masks as COCO's compressed run lengths and back; pycocotools does the coding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask


class RLE(TypedDict):
    """A mask as COCO files hold it: `size` is [height, width], `counts` the compressed run lengths as ASCII text."""

    size: list[int]
    counts: str


def rle_as_text(coded: Mapping[str, Any]) -> RLE:
    """What pycocotools returns, with counts as text and plain integers."""
    height, width = coded["size"]
    return {"size": [int(height), int(width)], "counts": coded["counts"].decode("ascii")}


def encode_masks(masks_NHW: NDArray[Any]) -> list[RLE]:
    """Run lengths of N masks; anything non-zero is inside."""
    if len(masks_NHW) == 0:
        return []
    columns = np.asfortranarray(np.moveaxis(masks_NHW != 0, 0, -1).astype(np.uint8))
    return [rle_as_text(coded) for coded in coco_mask.encode(columns)]


def encode_mask(mask_HW: NDArray[Any]) -> RLE:
    """Run lengths of one mask."""
    return encode_masks(mask_HW[None])[0]


def decode_masks(rles: Sequence[RLE], height: int, width: int) -> NDArray[np.uint8]:
    """Masks (N, height, width) of 0 and 1.

    Raises:
        ValueError: a mask is of another size.
    """
    for rle in rles:
        if list(rle["size"]) != [height, width]:
            raise ValueError(f"mask of size {rle['size']} for an image of {[height, width]}")
    if not rles:
        return np.zeros((0, height, width), np.uint8)
    return np.ascontiguousarray(np.moveaxis(coco_mask.decode(list(rles)), -1, 0))


def rle_area(rle: RLE) -> int:
    """Number of pixels inside."""
    return int(coco_mask.area(rle))
