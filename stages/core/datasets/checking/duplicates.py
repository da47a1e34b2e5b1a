"""Images that are the same, or nearly: copies by their bytes, and pictures by the difference hash of their looks.

The difference hash (Krawetz, 2013) says for 8 x 8 places of the shrunk gray image whether it gets brighter to the
right; a resized, recompressed or slightly brighter copy keeps nearly all of its 64 bits.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

KeyT = TypeVar("KeyT", bound=Hashable)
NEAR_BITS = 3
"""Bits of 64 in which two near-duplicates differ at most; below the four bands of 16 that are compared."""
FLAT_BITS = 4
"""Images with fewer bits set or unset are flat (sky, a blank page), and their hash says nothing."""


@dataclass(frozen=True)
class Looks:
    """What is compared of an image: sha256 of its bytes and the difference hash of its pixels."""

    digest: str
    bits: int


def looks_of(path: Path, pixels_HW3: NDArray[np.uint8]) -> Looks:
    """Describe an image that has been read."""
    small = Image.fromarray(pixels_HW3).convert("L").resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.int16)
    bits = np.packbits(values[:, 1:] > values[:, :-1]).tobytes()
    return Looks(hashlib.sha256(path.read_bytes()).hexdigest(), int.from_bytes(bits, "big"))


def equal_images(looks: Mapping[KeyT, Looks]) -> list[list[KeyT]]:
    """Groups of two or more images of the same bytes, in the order given."""
    groups: dict[str, list[KeyT]] = defaultdict(list)
    for key, own in looks.items():
        groups[own.digest].append(key)
    return [group for group in groups.values() if len(group) > 1]


def near_images(looks: Mapping[KeyT, Looks]) -> list[tuple[KeyT, KeyT]]:
    """Pairs of images that look alike and are not the same file; each image with the first that it resembles."""
    bands: dict[tuple[int, int], list[KeyT]] = defaultdict(list)
    pairs: list[tuple[KeyT, KeyT]] = []
    for key, own in looks.items():
        if not FLAT_BITS <= own.bits.bit_count() <= 64 - FLAT_BITS:
            continue
        places = [(band, (own.bits >> 16 * band) & 0xFFFF) for band in range(4)]
        first = _first_like(own, [other for place in places for other in bands[place]], looks)
        if first is not None:
            pairs.append((first, key))
        for place in places:
            bands[place].append(key)
    return pairs


def _first_like(own: Looks, candidates: Sequence[KeyT], looks: Mapping[KeyT, Looks]) -> KeyT | None:
    for other in candidates:
        differing = (own.bits ^ looks[other].bits).bit_count()
        if differing <= NEAR_BITS and looks[other].digest != own.digest:
            return other
    return None
