"""Settings of `retrain`: a detector's, and the RoI drop's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.core.training.detector_settings import DetectorSettings


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
