"""Settings of `cam`. Defaults are the embedded classifier; the recipe `paper` has the published transformer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.core.config import StageConfig


class CamConfig(StageConfig):
    """Classifier, its training on tags, and its maps."""

    model: str = Field(
        "hybrid",
        description="hybrid, a timm vision transformer (deit_small_patch16_224, DINOv2, EVA-02), or a timm CNN:"
        " coarse maps only",
    )
    pretrained: bool = Field(True, description="start from ImageNet weights")
    backbone: str = Field("lite0-embedded", description="hybrid: lite0-embedded or any timm feature backbone")
    strides: tuple[int, ...] = Field(
        (8, 16), min_length=1, description="hybrid: trunk maps summed, pixels per cell"
    )
    frozen_to: int = Field(
        8, ge=0, description="hybrid: trunk layers up to this stride stay as they are; 0 = none"
    )
    dim: int = Field(192, ge=8, description="hybrid: token width")
    depth: int = Field(2, ge=1, description="hybrid: attention blocks")
    heads: int = Field(6, ge=1, description="hybrid: attention heads; must divide dim")
    locality: float = Field(
        0.5,
        ge=0,
        description="hybrid: attention logits lost per cell of distance (head 0; halves per head); 0 = none",
    )
    patches_see_classes: bool = Field(False, description="hybrid: let patch tokens attend to class tokens")
    fusion: Literal["mean", "learned", "features"] = Field(
        "mean",
        description="fusion of attention over layers and heads: mean, learned weights, or gates from head outputs;"
        " the paper's adaptive one is provably a mean",
    )

    epochs: int = Field(6, ge=1, description="passes over the train split")
    batch_size: int = Field(16, ge=1, description="images per micro-batch, all processes together")
    accumulate: int = Field(
        1, ge=1, description="micro-batches whose gradients make one step of the optimiser"
    )
    lr: float = Field(1e-3, gt=0, description="AdamW rate of fresh layers (transformer: of everything)")
    trunk_lr: float = Field(5e-4, gt=0, description="hybrid: AdamW rate of the trunk")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with a growing rate")
    train_size: int = Field(224, ge=32, description="side of the square training crops, pixels")
    min_area: float = Field(0.5, gt=0, le=1, description="smallest share of the image that a crop covers")
    randaugment: str = Field(
        "", description="timm's policy of random image operations, e.g. rand-m9-mstd0.5-inc1; empty = none"
    )
    erasing: float = Field(
        0.0, ge=0, le=1, description="probability that noise replaces a part of a training crop"
    )
    holdout: float = Field(
        0.1, ge=0, lt=0.5, description="share of the train split that chooses the epoch, by mAP"
    )
    threads: int = Field(
        1, ge=1, description="CPU threads of the training; results depend on it, not on the machine"
    )

    scales: tuple[float, ...] = Field(
        (1.0, 0.8, 1.2), min_length=1, description="sizes of the views; the first is 1"
    )
    flip: bool = Field(True, description="add the mirrored views")
    max_side: int = Field(
        640, ge=32, description="larger images are shrunk to this long side before scaling, pixels"
    )
    cells_per_token: int = Field(2, ge=1, le=4, description="stored map cells per token and axis")
    affinity: Literal["attention", "transposed", "symmetric", "feature"] = Field(
        "feature", description="what spreads cross * coarse into the fine map; attention = paper"
    )
    temperature: float = Field(0.3, gt=0, description="softmax temperature of the feature affinity")
    cross_layers: tuple[int, ...] = Field(
        (0,), description="0-based layers whose cross maps are kept; empty = all"
    )
    test_logit: float = Field(
        -0.5, description="test splits: classes with a mean class-token logit above this"
    )

    @model_validator(mode="after")
    def _check(self) -> CamConfig:
        if self.dim % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide dim ({self.dim})")
        if self.randaugment and not self.randaugment.startswith("rand"):
            raise ValueError("randaugment is a policy of timm such as rand-m9-mstd0.5-inc1")
        if self.scales[0] != 1.0 or min(self.scales) <= 0:
            raise ValueError("scales must be positive and begin with 1.0")
        if any(layer < 0 for layer in self.cross_layers):
            raise ValueError("cross_layers are counted from 0")
        return self
