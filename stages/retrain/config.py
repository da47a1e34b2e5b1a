"""Settings of `retrain`: a detector's, of either architecture, and the RoI drop's."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, model_validator

from stages.core.training.detector_settings import PAPER as PAPER_DETECTOR
from stages.core.training.detector_settings import DetectorSettings
from stages.core.vision.detector_spec import DetectorSpec, DetrSpec

PAPER: Final[dict[str, Any]] = {
    **PAPER_DETECTOR,
    "tta_sizes": (480, 576, 688, 864, 1000, 1800),
    "drop": "paper",
    "tau_cls": 4.0,
    "tau_reg": 4.0,
    "drop_start": 0.22,
}
"""Published settings on VOC07. VOC12: lr 0.015, 16,000 steps, no drop; COCO14: tau_cls 5, drop_start 0.12."""


PAPER_DETR: Final[dict[str, Any]] = {
    "architecture": "deformable-detr",
    "backbone": "resnet50-fpn",
    "strides": (8, 16, 32),
    "frozen_through": 4,
    "transformer_width": 256,
    "attention_heads": 8,
    "feedforward": 2048,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "queries": 900,
    "test_size": 800,
    "max_size": 1333,
    "tta_sizes": (488, 576, 688, 864, 1200),
    "train_sizes": tuple(range(480, 801, 32)),
    "photometric": 0.0,
    "nms_iou": 1.0,
    "max_detections": 300,
    "score_threshold": 0.0,
    "epochs": 42,
    "batch_size": 16,
    "optimizer": "adamw",
    "lr": 9e-5,
    "lr_batch": 16,
    "trunk_lr_factor": 0.1,
    "weight_decay": 1e-4,
    "schedule": "steps",
    "milestones": (0.571, 0.714, 0.857),
    "warmup": 0.0,
    "clip_norm": 0.1,
    "ema_decay": 0.0,
    "drop": "off",
}
"""Published settings of DINO on VOC07: 14 epochs of the images three times over, drops after 8, 10 and 12; RoI drop is
disabled in the release. VOC12: lr 8e-5, weight decay 3e-4, 36 epochs, drops at 0.667, 0.833; COCO14: lr 1e-4, 12
epochs, drops at 0.667, 0.917. DINO itself is not in the library: the same trunk, depths, widths and costs here."""


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
