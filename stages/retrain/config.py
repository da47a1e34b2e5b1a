"""Settings of `retrain`: a detector's, and the RoI drop's."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from stages.core.training.detector_settings import PAPER as PAPER_DETECTOR
from stages.core.training.detector_settings import DetectorSettings

PAPER: Final[dict[str, Any]] = {
    **PAPER_DETECTOR,
    "drop": "paper",
    "tau_cls": 4.0,
    "tau_reg": 4.0,
    "drop_start": 0.22,
}
"""Published settings on VOC07. VOC12: lr 0.015, 16,000 steps, no drop; COCO14: tau_cls 5, drop_start 0.12."""


class RetrainConfig(DetectorSettings):
    """Retraining of Faster R-CNN on pseudo ground truth, with RoI drop."""

    drop: Literal["off", "paper", "independent", "normalised", "percentile"] = Field(
        "paper", description="RoI drop rule: paper = both raw losses above their thresholds"
    )
    tau_cls: float = Field(
        4.0,
        ge=0,
        description="drop threshold of the classification loss, nats; in [0, 1] for normalised, percentile",
    )
    tau_reg: float = Field(
        4.0,
        ge=0,
        description="drop threshold of the regression loss, delta units; in [0, 1] for the same two",
    )
    drop_start: float = Field(
        0.22, ge=0, le=1, description="share of the training before anything is dropped"
    )
