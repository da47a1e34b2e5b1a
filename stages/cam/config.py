"""Settings of `cam`. Defaults are the embedded classifier; the recipe `paper` has the published transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.config import OnlyWith, Settings, StageConfig
from stages.core.settings import (
    BackboneLrFactor,
    BackboneName,
    BackboneSettings,
    BatchSize,
    Epochs,
    FreezeThroughStride,
    HflipProb,
    MaxSize,
    OutStrides,
    TrainingSettings,
    WarmupFactor,
    WarmupFraction,
)

PosEmbedInterpolation = Literal["antialias", "offset"]
WITH_ATTENTION = OnlyWith("architecture", ("hybrid", "vit"))


class HybridSettings(Settings):
    """Attention blocks on the maps of a convolutional backbone."""

    out_strides: OutStrides = (8, 16)
    freeze_through_stride: FreezeThroughStride = 8
    embed_dim: int = Field(192, ge=8, le=4096, description="Channels of the tokens")
    depth: int = Field(2, ge=1, le=100, description="Attention blocks")
    num_heads: int = Field(
        6, ge=1, le=128, description="Heads of every attention block; must divide embed_dim"
    )
    locality: float = Field(
        0.5,
        ge=0,
        description="Attention logits lost per cell of distance (head 0; halves per head); 0 = none",
    )
    patches_attend_classes: bool = Field(False, description="Let patch tokens attend to class tokens")

    @model_validator(mode="after")
    def _check(self) -> HybridSettings:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide embed_dim ({self.embed_dim})")
        return self


class CamConfig(TrainingSettings, BackboneSettings, StageConfig):
    """Classifier, its training on tags, and its maps."""

    main_settings: ClassVar[tuple[str, ...]] = (
        "architecture",
        "backbone",
        "epochs",
        "lr",
        "batch_size",
        "train_crop_size",
        "tta_scales",
        "max_size",
        "affinity",
        "test_logit_thresh",
    )
    headings: ClassVar[Mapping[str, str]] = {
        "architecture": "Classifier",
        "epochs": "Crops and validation",
        "tta_scales": "Maps",
    }

    architecture: Literal["hybrid", "vit", "cnn"] = Field(
        "hybrid",
        description="hybrid: attention blocks on a convolutional backbone; vit: a timm vision transformer with a"
        " class token (DeiT, ViT, DINOv2, EVA-02); cnn: a timm convolutional network, which gives coarse maps only",
    )
    backbone: BackboneName = Field(
        "lite0-embedded",
        description="Feature extractor: lite0-embedded (shipped), or any timm model of the architecture",
    )
    hybrid: Annotated[HybridSettings, OnlyWith("architecture", ("hybrid",))] = Field(
        HybridSettings(), description="Attention blocks on a convolutional backbone"
    )
    attention_fusion: Annotated[Literal["mean", "learned", "features"], WITH_ATTENTION] = Field(
        "mean",
        description="Fusion of attention over layers and heads: mean, learned weights, or gates from head outputs;"
        " the paper's adaptive one is provably a mean",
    )

    pos_embed_interpolation: Annotated[PosEmbedInterpolation, OnlyWith("architecture", ("vit",))] = Field(
        "antialias",
        description="Position embeddings at other sizes than the pretrained: antialias is timm's; offset, as published,"
        " enlarges them by a factor 0.1 cells too large",
    )

    epochs: Epochs = 6
    batch_size: BatchSize = 16
    backbone_lr_factor: Annotated[BackboneLrFactor, OnlyWith("architecture", ("hybrid", "cnn"))] = 0.5
    warmup_fraction: WarmupFraction = 0.1
    warmup_factor: WarmupFactor = 0.001
    warmup_prefix: bool = Field(
        True, description="The cosine begins after the warm-up; false: it spans all steps, as published"
    )
    min_lr_factor: float = Field(
        0.01, ge=0, le=1, description="Fraction of the rate at the end of the cosine"
    )
    train_crop_size: int = Field(
        224, ge=32, le=10_000, description="Side of the square training crops, pixels"
    )
    min_crop_area_fraction: float = Field(
        0.5, gt=0, le=1, description="Smallest fraction of the image's area that a training crop covers"
    )
    crop_aspect: Literal["image", "square"] = Field(
        "image",
        description="Aspect ratio of a training crop, before it is resized to the square: 3/4 to 4/3 of the image's"
        " own, or 3/4 to 4/3, as published",
    )
    train_interpolation: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="How training crops are resized, antialiased; bicubic is published"
    )
    hflip_prob: HflipProb = 0.5
    randaugment: str = Field(
        "", description="timm's policy of random image operations, e.g. rand-m9-mstd0.5-inc1; empty = none"
    )
    random_erase_prob: float = Field(
        0.0, ge=0, le=1, description="Probability that noise replaces a part of a training crop"
    )
    val_fraction: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="Fraction of the train split that chooses the epoch, by mAP of its tags",
    )

    tta_scales: tuple[Annotated[float, Field(gt=0, le=10)], ...] = Field(
        (1.0, 0.8, 1.2),
        min_length=1,
        description="Sizes of the views whose maps are averaged; the first is 1",
    )
    tta_hflip: bool = Field(True, description="Add the horizontally flipped view of every scale")
    max_size: MaxSize = 640
    cells_per_token: int = Field(2, ge=1, le=4, description="Stored map cells per token and axis")
    affinity: Annotated[Literal["attention", "transposed", "symmetric", "feature"], WITH_ATTENTION] = Field(
        "feature", description="What spreads cross * coarse into the fine map; attention = paper"
    )
    affinity_temperature: Annotated[float, WITH_ATTENTION, OnlyWith("affinity", ("feature",))] = Field(
        0.3, gt=0, le=100, description="Temperature of the softmax of the feature affinity"
    )
    cross_layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], WITH_ATTENTION] = Field(
        (0,), description="Layers, counted from 0, whose cross maps are kept; empty = all"
    )
    test_logit_thresh: float = Field(
        -0.5, description="Test splits: maps are made of classes with a mean class-token logit above this"
    )

    @model_validator(mode="after")
    def _check(self) -> CamConfig:
        if self.randaugment and not self.randaugment.startswith("rand"):
            raise ValueError("randaugment is a policy of timm such as rand-m9-mstd0.5-inc1")
        if self.tta_scales[0] != 1.0:
            raise ValueError("tta_scales must begin with 1.0")
        return self
