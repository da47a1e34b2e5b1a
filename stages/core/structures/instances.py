"""What a detector outputs for one image, as tensors on its device, before it becomes `Detections`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from torch import Tensor

from stages.core.structures.columns import Column, Columns
from stages.core.structures.detections import Detections
from stages.core.structures.rle import encode_masks

MASK_THRESHOLD = 0.5
"""Probability from which a pixel belongs to a mask."""


@dataclass(frozen=True, eq=False)
class Instances(Columns):
    """Objects found in one image.

    Attributes:
        boxes_xyxy: floating (n, 4), half-open pixels.
        classes: int64 (n,), 0-based.
        scores: floating (n,).
        masks: bool (n, H, W), or None.
    """

    boxes_xyxy: Annotated[Tensor, Column("float", 4)]
    classes: Annotated[Tensor, Column("int64")]
    scores: Annotated[Tensor, Column("float")]
    masks: Annotated[Tensor | None, Column("bool", None, None)] = None

    @classmethod
    def from_torchvision(cls, output: Mapping[str, Tensor]) -> Instances:
        """From the output of a torchvision detector for one image: labels count from 1, masks are probabilities."""
        masks = output["masks"][:, 0] > MASK_THRESHOLD if "masks" in output else None
        return cls(output["boxes"], output["labels"] - 1, output["scores"], masks)

    def detections(self) -> Detections:
        """The same objects as arrays and run lengths."""
        return Detections(
            self.boxes_xyxy.float().cpu().numpy(),
            self.classes.cpu().numpy().astype(np.int64),
            self.scores.float().cpu().numpy(),
            None if self.masks is None else encode_masks(self.masks.cpu().numpy()),
        )
