"""Settings of `retrain`: a detector's, of either architecture, and the RoI drop's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.core.detectors.settings import DetectorSettings
from stages.core.detectors.spec import DetectorSpec, DetrSpec


class RetrainConfig(DetectorSettings):
    """Retraining of an ordinary detector on pseudo ground truth, with RoI drop."""

    architecture: Literal["faster-rcnn", "rt-detr", "deformable-detr"] = Field(
        "faster-rcnn", description="faster-rcnn; rt-detr (v2) and deformable-detr need the extra hf"
    )
    transformer_width: int = Field(128, ge=8, description="DETR: channels of encoder and decoder")
    attention_heads: int = Field(8, ge=1, description="DETR: heads of every attention layer")
    feedforward: int = Field(512, ge=8, description="DETR: hidden units of every layer")
    encoder_layers: int = Field(1, ge=1, description="DETR: encoder layers")
    decoder_layers: int = Field(3, ge=1, description="DETR: decoder layers, each with losses of its own")
    queries: int = Field(60, ge=1, description="DETR: boxes proposed per image")
    denoising: int = Field(
        60, ge=0, description="rt-detr: noisy targets per image that the decoder restores; 0 = none"
    )
    train_score_threshold: float = Field(
        0.001,
        ge=0,
        lt=1,
        description="score_threshold on the train split: a second round of pgt needs a box for every tag",
    )
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
        description="drop threshold of the regression loss: delta units, DETR 5 L1 + 2 GIoU; in [0, 1] for the two",
    )
    drop_start: float = Field(
        0.22, ge=0, le=1, description="share of the training before anything is dropped"
    )

    @model_validator(mode="after")
    def _check(self) -> RetrainConfig:
        for name in ("tau_cls", "tau_reg"):
            if self.drop in ("normalised", "percentile") and getattr(self, name) > 1:
                raise ValueError(
                    f"drop = {self.drop} needs {name} in [0, 1], e.g. 0.98, and it is {getattr(self, name)}"
                )
        return self

    def detector_spec(self) -> DetectorSpec | DetrSpec:
        """The part that a checkpoint is rebuilt from."""
        if self.architecture == "faster-rcnn":
            return self.spec("faster-rcnn")
        shared = {name: getattr(self, name) for name in DetrSpec.model_fields if name != "kind"}
        return DetrSpec(kind=self.architecture, **shared)
