"""Boxes on their way from the decoder to the table: parallel columns that are filtered and joined together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Boxes with provenance; every field has one row per box.

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

    boxes_xyxy: Tensor
    predicted_iou: Tensor
    stability: Tensor
    prompt: Tensor
    mask_index: Tensor
    source: Tensor
    class_index: Tensor
    peak_score: Tensor

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    def select(self, index: Tensor) -> Candidates:
        """Rows by boolean mask or by index."""
        return Candidates(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def with_source(self, source: Tensor) -> Candidates:
        """The same boxes with other source bits."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return Candidates(**{**columns, "source": source})

    def cpu(self) -> Candidates:
        """Copy to main memory."""
        return Candidates(**{f.name: getattr(self, f.name).cpu() for f in fields(self)})

    @staticmethod
    def concat(parts: Sequence[Candidates]) -> Candidates:
        """Join in order; no part gives no rows."""
        if not parts:
            return _none()
        return Candidates(
            **{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Candidates)}
        )


def _none() -> Candidates:
    real, small = torch.zeros(0), torch.zeros(0, dtype=torch.int8)
    return Candidates(
        boxes_xyxy=torch.zeros(0, 4), predicted_iou=real, stability=real,
        prompt=torch.zeros(0, dtype=torch.int64), mask_index=small, source=small,
        class_index=torch.zeros(0, dtype=torch.int32), peak_score=real,
    )  # fmt: skip
