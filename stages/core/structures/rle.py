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


def run_lengths_of(counts: str) -> NDArray[np.int64]:
    """Return the run lengths that compressed ones stand for, of pixels outside and inside in turn.

    pycocotools decodes without looking: text that was cut or changed makes it write anywhere, or never end. The code is
    COCO's: six bits a character, the lowest five first, the sixth where more follow, differences to the run two before.

    Raises:
        ValueError: not such text.
    """
    try:
        codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise ValueError("has run lengths that are no text of COCO") from None
    if len(codes) == 0:
        return np.zeros(0, np.int64)
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("has run lengths that are no text of COCO")
    last = np.flatnonzero((codes & 32) == 0)
    if len(last) == 0 or last[-1] != len(codes) - 1:
        raise ValueError("has run lengths that are cut short")
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 9:  # fifty bits; masks have 32
        raise ValueError("has run lengths that are no text of COCO")
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((codes & 31) << (5 * place), first)
    values -= np.where(codes[last] & 16, np.int64(1) << (5 * (last - first + 1)), 0)
    # From the fourth on, each is the difference to the run two before.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def check_rle(counts: str, height: int, width: int) -> None:
    """Refuse compressed run lengths that are not of a mask of this size.

    Raises:
        ValueError: see :func:`run_lengths_of`, or they do not add up to the pixels.
    """
    runs = run_lengths_of(counts)
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(f"has run lengths that do not add up to {height} x {width} pixels")


def rle_area(rle: RLE) -> int:
    """Number of pixels inside."""
    return int(coco_mask.area(rle))
