"""Boxes on their way from the decoder to the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from stages.core.structures.columns import Column, Columns


@dataclass(frozen=True, eq=False)
class Candidates(Columns):
    """Boxes with provenance.

    Attributes:
        boxes_xyxy: ``(n, 4)`` float32 half-open pixels.
        predicted_iou: ``(n,)`` float32, the segmenter's own estimate.
        stability: ``(n,)`` float32 in [0, 1].
        prompt: ``(n,)`` int64, number of the prompt.
        mask_index: ``(n,)`` int8, which of the prompt's masks.
        source: ``(n,)`` int8, OR of ``SOURCE_BITS``.
        class_index: ``(n,)`` int32, class of the prompting point, -1 for the grid.
        peak_score: ``(n,)`` float32, nan for the grid.
    """

    boxes_xyxy: Annotated[Tensor, Column("float32", 4)]
    predicted_iou: Annotated[Tensor, Column("float32")]
    stability: Annotated[Tensor, Column("float32")]
    prompt: Annotated[Tensor, Column("int64")]
    mask_index: Annotated[Tensor, Column("int8")]
    source: Annotated[Tensor, Column("int8")]
    class_index: Annotated[Tensor, Column("int32")]
    peak_score: Annotated[Tensor, Column("float32")]

    @classmethod
    def empty(cls) -> Candidates:
        """No box."""
        real, small = torch.zeros(0), torch.zeros(0, dtype=torch.int8)
        return cls(
            boxes_xyxy=torch.zeros(0, 4), predicted_iou=real, stability=real,
            prompt=torch.zeros(0, dtype=torch.int64), mask_index=small, source=small,
            class_index=torch.zeros(0, dtype=torch.int32), peak_score=real,
        )  # fmt: skip
