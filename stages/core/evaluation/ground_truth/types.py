"""What the ground truth about a split looks like: boxes, classes, flags and masks per image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stages.core.errors import SchemaError
from stages.core.structures.rle import RLE

__all__ = ["RLE", "GroundTruth", "GroundTruthProblem", "ImageGroundTruth"]


@dataclass(frozen=True)
class ImageGroundTruth:
    """The true objects of one image.

    Attributes:
        width: Pixels, from the image file after EXIF.
        height: Pixels, from the image file after EXIF.
        boxes_xyxy: float64 (n, 4), 0-based half-open pixels.
        classes: int64 (n,), 0-based.
        difficult: bool (n,), VOC's flag (COCO layout: the ``ignore`` some converters write).
        crowd: bool (n,), COCO's ``iscrowd``.
        masks: n run-length masks of the whole image, or None where the data set has none.
        areas: float64 (n,) square pixels as COCO counts them: the annotation's ``area``, else that of
            the mask, else that of the box. None in ground truth made by hand.
        flaws: Why objects, or the masks of all, were left out.
        left_out: Objects that were left out.
    """

    width: int
    height: int
    boxes_xyxy: NDArray[np.float64]
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    masks: list[RLE] | None = None
    areas: NDArray[np.float64] | None = None
    flaws: tuple[SchemaError, ...] = ()
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class GroundTruthProblem:
    """An image of the split that cannot be scored, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class GroundTruth:
    """The true objects of a split.

    Attributes:
        split: Split name.
        classes: Class names by index.
        category_ids: COCO category ids, aligned with ``classes``.
        images: Image id -> objects, in the order of the split's ids; images without objects included.
        problems: Images left out because their file is missing or cannot be read.
    """

    split: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: dict[str, ImageGroundTruth]
    problems: tuple[GroundTruthProblem, ...] = field(default=())
