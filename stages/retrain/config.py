"""Settings of `retrain`: a detector's, of either architecture, and the RoI drop's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.config import OnlyWith, Settings, StageConfig
from stages.core.detectors.settings import DetectorSettings, TwoStageSettings, spec_values
from stages.core.detectors.spec import DetectorSpec, DetrSpec


class DetrSettings(Settings):
    """A detection transformer behind the backbone."""

    d_model: int = Field(128, ge=8, le=4096, description="Channels of encoder and decoder")
    num_heads: int = Field(8, ge=1, le=128, description="Heads of every attention layer")
    dim_feedforward: int = Field(512, ge=8, le=65_536, description="Hidden units of every layer")
    num_encoder_layers: int = Field(1, ge=1, le=100, description="Encoder layers")
    num_decoder_layers: int = Field(
        3, ge=1, le=100, description="Decoder layers, each with losses of its own"
    )
    num_queries: int = Field(60, ge=1, le=100_000, description="Boxes proposed per image")


class RtDetrSettings(DetrSettings):
    """RT-DETR, version 2, with denoising."""

    num_denoising: int = Field(
        60,
        ge=0,
        le=10_000,
        description="Noisy targets per image that the decoder restores; 0 = none",
    )


class DinoSettings(RtDetrSettings):
    """DINO: boxes of queries from the encoder, learnt contents, denoising."""

    look_forward_twice: bool = Field(
        True, description="A decoder layer learns from the loss of the next one, too; false is an ablation"
    )


class RetrainConfig(DetectorSettings, StageConfig):
    """Retraining of an ordinary detector on pseudo ground truth, with RoI drop."""

    main_settings: ClassVar[tuple[str, ...]] = (
        "architecture",
        "backbone",
        "epochs",
        "lr",
        "batch_size",
        "train_short_sides",
        "test_short_side",
        "tta",
        "roi_drop",
        "roi_drop_start_fraction",
    )
    headings: ClassVar[Mapping[str, str]] = {
        "train_score_thresh": "RoI drop and a second round",
    }

    architecture: Literal["faster-rcnn", "rt-detr", "deformable-detr", "dino"] = Field(
        "faster-rcnn", description="faster-rcnn; rt-detr (v2), deformable-detr and dino need the extra hf"
    )
    faster_rcnn: Annotated[TwoStageSettings, OnlyWith("architecture", ("faster-rcnn",))] = Field(
        TwoStageSettings(), description="Faster R-CNN behind the backbone"
    )
    rt_detr: Annotated[RtDetrSettings, OnlyWith("architecture", ("rt-detr",))] = Field(
        RtDetrSettings(), description="RT-DETR behind the backbone"
    )
    deformable_detr: Annotated[DetrSettings, OnlyWith("architecture", ("deformable-detr",))] = Field(
        DetrSettings(), description="Deformable DETR behind the backbone"
    )
    dino: Annotated[DinoSettings, OnlyWith("architecture", ("dino",))] = Field(
        DinoSettings(), description="DINO behind the backbone"
    )
    min_box_side_px: float = Field(
        0.0,
        ge=0,
        le=10_000,
        description="Pseudo boxes with a shorter side, original pixels, do not teach; published for DINO on VOC: 32",
    )
    train_score_thresh: float = Field(
        0.001,
        ge=0,
        lt=1,
        description="score_thresh on the train split: a second round of pgt needs a box for every tag",
    )
    roi_drop: Literal["off", "paper", "independent", "normalized", "percentile"] = Field(
        "paper", description="RoI drop rule: paper = both raw losses above their thresholds"
    )
    tau_cls: float = Field(
        4.0,
        ge=0,
        description="RoI drop: threshold of the classification loss, nats; in [0, 1] for normalized, percentile",
    )
    tau_reg: float = Field(
        4.0,
        ge=0,
        description="RoI drop: threshold of the regression loss, delta units, or 5 L1 + 2 GIoU of a DETR; in [0, 1]"
        " for normalized, percentile",
    )
    roi_drop_start_fraction: float = Field(
        0.22, ge=0, le=1, description="RoI drop: fraction of the training before anything is dropped"
    )

    @model_validator(mode="after")
    def _check(self) -> RetrainConfig:
        for name in ("tau_cls", "tau_reg"):
            if self.roi_drop in ("normalized", "percentile") and getattr(self, name) > 1:
                raise ValueError(
                    f"roi_drop = {self.roi_drop} needs {name} in [0, 1], e.g. 0.98, and it is {getattr(self, name)}"
                )
        return self

    def detector_spec(self) -> DetectorSpec | DetrSpec:
        """The part that a checkpoint is rebuilt from."""
        if self.architecture == "faster-rcnn":
            return DetectorSpec(kind="faster-rcnn", **spec_values(DetectorSpec, self, self.faster_rcnn))
        own = {"rt-detr": self.rt_detr, "deformable-detr": self.deformable_detr, "dino": self.dino}[
            self.architecture
        ]
        return DetrSpec(kind=self.architecture, **spec_values(DetrSpec, self, own))
