"""Settings of weakly supervised detection; published values are in docs/method.md, section 5."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.core.config import StageConfig


class WsodConfig(StageConfig):
    """Settings of `weaksam wsod`."""

    method: Literal["wsddn", "oicr", "mist"] = Field(
        "mist",
        description="Detector: two streams alone, with refinement, or with multi-instance refinement and regression",
    )
    # Network.
    trunk: str = Field(
        "lite0-embedded", description="Backbone: lite0-embedded, vgg16-d8, or any timm feature backbone"
    )
    weights: str | None = Field(
        None,
        description="Backbone weights file (safetensors); default: the backbone's own ImageNet weights. For vgg16-d8 "
        "torchvision's VGG16: images are always normalised with torchvision's RGB statistics",
    )
    pretrained: bool = Field(True, description="Start from ImageNet weights; false draws random ones")
    out_strides: tuple[int, ...] = Field(
        (8, 16), description="Feature strides that are fused at the finest one, pixels, ascending"
    )
    final_relu: bool = Field(
        True, description="vgg16-d8: keep the ReLU after the last convolution; published for MIST: false"
    )
    freeze_stride: int = Field(
        16,
        description="Backbone layers up to this stride are not trained; 0 trains all; published: 4",
        ge=0,
    )
    frozen_bn: bool = Field(True, description="Keep batch normalisation of the backbone fixed")
    fused_channels: int = Field(
        64, description="Channels of the fused map; 0 keeps a single map as it is", ge=0, le=2048
    )
    pool: Literal["align", "max"] = Field(
        "align", description="RoI pooling: RoIAlign or max RoIPool (published)"
    )
    pool_size: int = Field(7, description="Bins per side of RoI pooling", ge=1, le=14)
    hidden: int = Field(256, description="Width of the two fully connected layers", ge=8, le=8192)
    dropout: float = Field(0.5, description="Dropout after each fully connected layer, share", ge=0, lt=1)
    dropblock: bool = Field(
        False, description="Adversarial Concrete DropBlock on pooled features (published for MIST)"
    )
    dropblock_drop: float = Field(
        0.3, description="Concrete DropBlock: share of cells to drop at most", gt=0, lt=1
    )
    dropblock_weight: float = Field(
        0.01, description="Concrete DropBlock: strength of the reversed gradient", ge=0, le=10
    )
    dropblock_form: Literal["reversal", "two_step"] = Field(
        "reversal",
        description="Concrete DropBlock: one pass with a reversed gradient, or a second pass and optimiser (published)",
    )
    dropblock_lr_factor: float = Field(
        1.0, description="two_step: learning rate of the dropper, multiple of lr", gt=0, le=1000
    )
    init_std: float = Field(0.01, description="Standard deviation of new heads' weights", gt=0, le=1)
    background_column: bool = Field(
        False, description="Give the two streams a background column (published for MIST)"
    )
    regression: bool = Field(
        True, description="Class-wise box regression in every refinement branch (mist only)"
    )
    # Label mining.
    branches: int = Field(3, description="Refinement branches", ge=1, le=10)
    branch_weights: tuple[float, ...] = Field(
        (1.0, 1.0, 1.0), description="Loss weight of each branch; published for MIST: 3, 1, 1"
    )
    miner: Literal["top1", "near_top"] = Field(
        "near_top", description="Seeds of oicr: the best proposal, or all near the best"
    )
    near_top_ratio: float = Field(
        0.9, description="near_top: share of the class maximum a seed must reach", gt=0, le=1
    )
    near_top_nms: float = Field(
        0.5, description="near_top: IoU above which the lower seed is dropped", ge=0, le=1
    )
    near_top_seeds: int = Field(
        32,
        description="near_top: seeds of a class, or of all with class_agnostic_nms, at most; published: no limit",
        ge=1,
        le=100000,
    )
    class_agnostic_nms: bool = Field(
        False, description="near_top: let classes suppress one another (published)"
    )
    mist_portion: float = Field(
        0.15, description="mist: share of the proposals that may become seeds of a class", gt=0, le=1
    )
    mist_iou: float = Field(
        0.2, description="mist: a seed must overlap all better ones by less than this IoU", gt=0, le=1
    )
    mist_floor: float = Field(
        0.0, description="mist: a seed must reach this share of its class's best; 0 = published", ge=0, le=1
    )
    mist_whole: float = Field(
        0.5,
        description="mist: a seed inside another goes if the other scores this share of it; 0 = published, none goes",
        ge=0,
        le=1,
    )
    fg_iou: float = Field(
        0.5, description="IoU with a seed from which a proposal takes its class", gt=0, le=1
    )
    ignore_iou: float = Field(
        0.0, description="IoU with every seed below which a proposal is ignored; 0 ignores none", ge=0, lt=1
    )
    seed_weights: Literal["score", "relative"] = Field(
        "relative",
        description="Loss weight of a seed: its score (published), or that over the best of its class in the image",
    )
    score_ties: bool = Field(
        True, description="A proposal mined for two classes takes the surer one; false: the first (published)"
    )
    bce_reduction: Literal["sum", "mean"] = Field(
        "mean", description="Image loss over classes: sum (OICR) or mean (MIST)"
    )
    # Training.
    epochs: int = Field(10, description="Passes over the training images", ge=1, le=1000)
    batch_size: int = Field(4, description="Images per micro-batch, all processes together", ge=1, le=1024)
    accumulate: int = Field(
        1, description="Micro-batches whose gradients make one step of the optimiser", ge=1, le=1024
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="Optimiser; adam couples weight decay as published"
    )
    lr: float = Field(1e-3, description="Learning rate of the heads", gt=0, le=1)
    trunk_lr_factor: float = Field(
        0.3, description="Learning rate of the backbone, multiple of lr", ge=0, le=10
    )
    refine_lr_factor: float = Field(
        1.0,
        description="Learning rate of the refinement layers, multiple of lr; published for OICR: 10",
        gt=0,
        le=100,
    )
    bias_lr_factor: float = Field(
        2.0,
        description="Learning rate of biases, multiple of their layer's; biases have no weight decay",
        gt=0,
        le=10,
    )
    weight_decay: float = Field(5e-4, description="Weight decay", ge=0, le=1)
    schedule: Literal["cosine", "steps"] = Field("cosine", description="Learning-rate schedule")
    milestones: tuple[float, ...] = Field(
        (0.67, 0.89), description="steps: shares of the training after which the rate drops by 0.1"
    )
    warmup: float = Field(0.03, description="Linear warm-up, share of the training", ge=0, lt=1)
    warmup_factor: float = Field(
        0.001,
        description="Warm-up starts at this share of the rate; published for MIST: 1/3",
        ge=0,
        le=1,
    )
    clip_norm: float = Field(10.0, description="Largest gradient norm; 0 does not clip", ge=0)
    ema_decay: float = Field(
        0.0, description="Decay of the weight average used at the end; 0 uses none", ge=0, lt=1
    )
    threads: int = Field(1, description="CPU threads while training; the last bits depend on it", ge=1)
    # Images and proposals.
    train_sizes: tuple[int, ...] = Field(
        (192, 224, 256), description="Short sides of training images, pixels, one drawn per image"
    )
    max_size: int = Field(2000, description="Largest long side, pixels", ge=32, le=10000)
    photometric: float = Field(
        0.3, description="Strength of the colour jitter in training; 0 = none", ge=0, le=1
    )
    lighting: float = Field(
        0.0, description="Strength of AlexNet's PCA lighting noise in training (paper 0.1); 0 = none", ge=0
    )
    flip: float = Field(0.5, description="Probability of a horizontal flip in training", ge=0, le=1)
    min_side: float = Field(
        4.0, description="Proposals with a shorter side are dropped, original pixels", ge=1, le=1000
    )
    dedup_grid: float = Field(
        0.0,
        description="Proposals that agree on a grid of this many pixels count once; 0 compares whole pixels",
        ge=0,
        le=64,
    )
    max_proposals: int = Field(
        2000, description="Proposals per image; the surest by predicted IoU are kept", ge=1, le=100000
    )
    # Detection.
    quality_power: float = Field(
        1.0,
        description="Scores are multiplied by the proposal's quality (predicted IoU x stability) to this power; "
        "0 = published",
        ge=0,
        le=10,
    )
    test_size: int = Field(224, description="Short side at detection, pixels", ge=16, le=10000)
    tta: bool = Field(False, description="Average detections over train_sizes and flips")
    nms_iou: float = Field(
        0.3, description="IoU above which the lower of two detections of a class is dropped", gt=0, le=1
    )
    score_threshold: float = Field(0.0, description="Detections must score more", ge=0, lt=1)
    max_detections: int = Field(100, description="Detections per image over all classes", ge=1, le=10000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method != "wsddn" and len(self.branch_weights) != self.branches:
            raise ValueError(
                f"branch_weights has {len(self.branch_weights)} values for {self.branches} branches"
            )
        if self.fused_channels == 0 and len(self.out_strides) != 1:
            raise ValueError("fused_channels 0 keeps one map as it is, but out_strides names several")
        if not self.train_sizes or min(self.train_sizes) < 16:
            raise ValueError("train_sizes needs at least one value, each 16 pixels or more")
        return self

    @property
    def uses_regression(self) -> bool:
        """Whether boxes are regressed: a part of MIST."""
        return self.method == "mist" and self.regression
