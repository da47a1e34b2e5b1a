"""Masks as COCO run lengths with text counts, by way of pycocotools."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stages.core.artifacts.coco_fields import RLE, as_text


def encode(mask_HW: NDArray[np.bool_]) -> RLE:
    """Run lengths of a mask."""
    return as_text(coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8)))


def area(rle: RLE) -> float:
    """Number of pixels set."""
    return float(coco_mask.area({"size": rle["size"], "counts": rle["counts"].encode("ascii")}))
