"""Binary masks as COCO's compressed run lengths and back (pycocotools does the coding)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stages.core.artifacts.coco_fields import RLE


def encode_masks(masks_NHW: NDArray[Any]) -> list[RLE]:
    """Run lengths of N masks; anything non-zero is inside."""
    if len(masks_NHW) == 0:
        return []
    columns = np.asfortranarray(np.moveaxis(masks_NHW != 0, 0, -1).astype(np.uint8))
    found = coco_mask.encode(columns)
    return [{"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")} for rle in found]


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
    coded = [{"size": rle["size"], "counts": rle["counts"].encode("ascii")} for rle in rles]
    return np.ascontiguousarray(np.moveaxis(coco_mask.decode(coded), -1, 0))
