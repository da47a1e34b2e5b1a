"""What was found in one image: boxes, classes, scores and perhaps masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from stages.core.structures.columns import Column, Columns
from stages.core.structures.rle import RLE


@dataclass(frozen=True, eq=False)
class Detections(Columns):
    """Objects found in one image, or pseudo objects; what artifacts hold, hence arrays and run lengths.

    Attributes:
        boxes_xyxy: float32 (n, 4), half-open pixels.
        classes: int64 (n,), 0-based.
        scores: float32 (n,).
        masks: n run-length masks of the whole image, or None.
    """

    boxes_xyxy: Annotated[NDArray[np.float32], Column("float32", 4)]
    classes: Annotated[NDArray[np.int64], Column("int64")]
    scores: Annotated[NDArray[np.float32], Column("float32")]
    masks: Annotated[list[RLE] | None, Column()] = None

    @classmethod
    def empty(cls) -> Detections:
        """No object."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))

    def reaching(self, score: float) -> Detections:
        """Those of at least a score, in their order."""
        return self[self.scores >= score]

    def best_first(self) -> Detections:
        """By descending score; equal ones keep their order."""
        return self[np.argsort(-self.scores, kind="stable")]

    def with_masks(self, masks: list[RLE] | None) -> Detections:
        """The same objects with other masks, or none.

        Raises:
            ValueError: another number of masks than of objects.
        """
        return replace(self, masks=masks)
