"""Settings of weakly supervised detection; published values are in docs/method.md, section 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.core.config import OnlyWith, Settings, StageConfig
from stages.core.settings import (
    BackboneName,
    BackboneSettings,
    ColorJitter,
    DetectionSettings,
    FcDim,
    FreezeThroughStride,
    ImageSettings,
    NmsThresh,
    Optimizer,
    OptimizerSettings,
    OutStrides,
    ScoreThresh,
    TtaSettings,
    WarmupFraction,
    WeightDecay,
)

REFINED = OnlyWith("method", ("oicr", "mist"))
NEAR_TOP = OnlyWith("miner", ("near_top",))
WITH_DROPBLOCK = OnlyWith("dropblock", (True,))


class OicrSettings(Settings):
    """Seeds of OICR."""

    miner: Literal["top1", "near_top"] = Field(
        "near_top", description="Seeds of a class: the best proposal, or all near the best"
    )
    min_score_ratio: Annotated[float, NEAR_TOP] = Field(
        0.9, description="A seed must score at least this fraction of its class's best", gt=0, le=1
    )
    seed_nms_thresh: Annotated[float, NEAR_TOP] = Field(
        0.5, description="IoU above which the lower of two seeds is dropped", ge=0, le=1
    )
    max_seeds: Annotated[int, NEAR_TOP] = Field(
        32,
        description="Seeds of a class, or of all with class_agnostic_nms, at most; published: no limit",
        ge=1,
        le=100_000,
    )
    class_agnostic_nms: Annotated[bool, NEAR_TOP] = Field(
        False, description="Let classes suppress one another's seeds (published)"
    )


class MistSettings(Settings):
    """Seeds and box regression of MIST."""

    top_fraction: float = Field(
        0.15, description="Fraction of the proposals that may become seeds of a class", gt=0, le=1
    )
    seed_nms_thresh: float = Field(
        0.2, description="A seed must overlap all better ones by less than this IoU", gt=0, le=1
    )
    min_score_ratio: float = Field(
        0.0,
        description="A seed must score at least this fraction of its class's best; 0 = published",
        ge=0,
        le=1,
    )
    container_score_ratio: float = Field(
        0.5,
        description="A seed inside another is dropped if the other scores at least this fraction of it; 0 = published,"
        " none is dropped",
        ge=0,
        le=1,
    )
    regression: bool = Field(True, description="Class-wise box regression in every refinement branch")


class WsodConfig(
    DetectionSettings, TtaSettings, ImageSettings, OptimizerSettings, BackboneSettings, StageConfig
):
    """Settings of `weaksam wsod`."""

    main_settings: ClassVar[tuple[str, ...]] = (
        "method",
        "backbone",
        "freeze_through_stride",
        "epochs",
        "lr",
        "batch_size",
        "train_short_sides",
        "test_short_side",
        "quality_power",
        "tta",
    )
    headings: ClassVar[Mapping[str, str]] = {
        "method": "Network",
        "num_refinements": "Refinement",
        "optimizer": "Learning rates of new layers",
        "color_jitter": "Images and proposals",
        "quality_power": "Scores",
    }

    method: Literal["wsddn", "oicr", "mist"] = Field(
        "mist",
        description="Detector: two streams alone, with refinement, or with multi-instance refinement and regression",
    )
    # Network.
    backbone: BackboneName = Field(
        "lite0-embedded",
        description="Feature extractor: lite0-embedded (shipped), vgg16-d8 (published), or any timm model that returns"
        " feature maps",
    )
    backbone_weights: str = Field(
        "",
        description="Safetensors file of backbone weights; empty takes the backbone's own ImageNet weights. For"
        " vgg16-d8 torchvision's VGG16: images are always normalized with torchvision's RGB statistics",
    )
    out_strides: OutStrides = (8, 16)
    final_relu: Annotated[bool, OnlyWith("backbone", ("vgg16-d8",))] = Field(
        True, description="Keep the ReLU after the last convolution; published for MIST: false"
    )
    freeze_through_stride: FreezeThroughStride = 16
    freeze_bn: bool = Field(True, description="Keep batch normalization of the backbone fixed")
    fused_channels: int = Field(
        64,
        description="Channels of the map that the backbone's maps are fused into at the finest stride; 0 keeps a"
        " single map as it is",
        ge=0,
        le=2048,
    )
    pooler_type: Literal["roi_align", "roi_pool"] = Field(
        "roi_align", description="RoI pooling: RoIAlign, or max RoIPool (published)"
    )
    pooler_resolution: int = Field(7, description="Bins per side of RoI pooling", ge=1, le=14)
    fc_dim: FcDim = 256
    dropout: float = Field(
        0.5, description="Probability of dropout after each fully connected layer", ge=0, lt=1
    )
    dropblock: bool = Field(
        False, description="Adversarial Concrete DropBlock on pooled features (published for MIST)"
    )
    dropblock_form: Annotated[Literal["reversal", "two_step"], WITH_DROPBLOCK] = Field(
        "reversal",
        description="One pass with a reversed gradient, or a second pass and optimizer (published)",
    )
    dropblock_max_fraction: Annotated[float, WITH_DROPBLOCK] = Field(
        0.3, description="Fraction of cells to drop at most", gt=0, lt=1
    )
    dropblock_weight: Annotated[float, WITH_DROPBLOCK] = Field(
        0.01, description="Strength of the reversed gradient", ge=0, le=10
    )
    dropblock_lr_factor: Annotated[float, WITH_DROPBLOCK, OnlyWith("dropblock_form", ("two_step",))] = Field(
        1.0, description="Learning rate of the dropper, multiple of lr", gt=0, le=1000
    )
    init_std: float = Field(0.01, description="Standard deviation of new heads' weights", gt=0, le=1)
    background_class: bool = Field(
        False, description="Give the two streams a background class (published for MIST)"
    )
    # Refinement.
    num_refinements: Annotated[int, REFINED] = Field(3, description="Refinement branches", ge=1, le=10)
    refine_loss_weights: Annotated[tuple[Annotated[float, Field(ge=0)], ...], REFINED] = Field(
        (1.0, 1.0, 1.0), description="Loss weight of each refinement branch; published for MIST: 3, 1, 1"
    )
    oicr: Annotated[OicrSettings, OnlyWith("method", ("oicr",))] = Field(
        OicrSettings(), description="Seeds of OICR"
    )
    mist: Annotated[MistSettings, OnlyWith("method", ("mist",))] = Field(
        MistSettings(), description="Seeds and box regression of MIST"
    )
    fg_iou_thresh: Annotated[float, REFINED] = Field(
        0.5, description="IoU with a seed from which a proposal takes its class", gt=0, le=1
    )
    ignore_iou_thresh: Annotated[float, REFINED] = Field(
        0.0, description="IoU with every seed below which a proposal is ignored; 0 ignores none", ge=0, lt=1
    )
    seed_weights: Annotated[Literal["score", "relative"], REFINED] = Field(
        "relative",
        description="Loss weight of a seed: its score (published), or that over the best of its class in the image",
    )
    tie_break_by_score: Annotated[bool, REFINED] = Field(
        True,
        description="A proposal mined for two classes takes that of the higher score; false: the first (published)",
    )
    # Evidence of the class maps, from `proposals.h5`; 0 everywhere = published.
    evidence_folds: int = Field(
        0,
        description="Folds of multi-fold learning, which corrects map evidence by the looks of other images' boxes "
        "before the training; 0 = the maps alone",
        ge=0,
        le=100,
    )
    evidence_prior: float = Field(
        0.0,
        description="Weight of the logarithm of map evidence in the logits of the detection stream; 0 = published",
        ge=0,
        le=10,
    )
    evidence_seeding: Annotated[float, REFINED] = Field(
        0.0,
        description="Fraction of the training, from its start, in which branch 1 learns the box of best map evidence "
        "of each tag and not the seeds of the two streams; 0 = published",
        ge=0,
        le=1,
    )
    evidence_mining_power: Annotated[float, REFINED] = Field(
        0.0,
        description="Scores that rank seeds are multiplied by map evidence to this power; 0 = published",
        ge=0,
        le=10,
    )
    evidence_score_power: float = Field(
        0.0,
        description="Scores of detections are multiplied by map evidence to this power; 0 = published",
        ge=0,
        le=10,
    )
    bce_reduction: Literal["sum", "mean"] = Field(
        "mean", description="Image loss over classes: sum (OICR) or mean (MIST)"
    )
    # Training.
    optimizer: Optimizer = "adam"
    refine_lr_factor: Annotated[float, REFINED] = Field(
        1.0,
        description="Learning rate of the refinement layers, multiple of lr; published for OICR: 10",
        gt=0,
        le=100,
    )
    bias_lr_factor: float = Field(
        2.0, description="Learning rate of biases, multiple of their layer's", gt=0, le=10
    )
    weight_decay: WeightDecay = 5e-4
    warmup_fraction: WarmupFraction = 0.03
    # Images and proposals.
    color_jitter: ColorJitter = 0.3
    lighting_std: float = Field(
        0.0,
        description="Standard deviation of AlexNet's PCA lighting noise in training, in units of each component's own"
        " (published for MIST: 0.1); 0 = none",
        ge=0,
        le=10,
    )
    min_side_px: float = Field(
        4.0, description="Proposals with a shorter side are dropped, original pixels", ge=1, le=1000
    )
    dedup_grid_px: float = Field(
        0.0,
        description="Proposals that agree on a grid of this many pixels count once; 0 compares whole pixels",
        ge=0,
        le=64,
    )
    max_proposals: int = Field(
        2000, description="Proposals used per image, those of highest predicted IoU", ge=1, le=100_000
    )
    # Detection.
    quality_power: float = Field(
        1.0,
        description="Scores are multiplied by the proposal's quality (predicted IoU x stability score) to this power; "
        "0 = published",
        ge=0,
        le=10,
    )
    tta_hflip: bool = Field(True, description="tta: mirrored views, too; published for OICR: false")
    nms_thresh: NmsThresh = 0.3
    score_thresh: ScoreThresh = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method != "wsddn" and len(self.refine_loss_weights) != self.num_refinements:
            raise ValueError(
                f"{len(self.refine_loss_weights)} refine_loss_weights for num_refinements {self.num_refinements}"
            )
        if self.fused_channels == 0 and len(self.out_strides) != 1:
            raise ValueError("fused_channels 0 keeps one map as it is, but out_strides names several")
        if self.evidence_folds == 1 or (self.evidence_folds and not self.learns_from_evidence):
            raise ValueError(
                "evidence_folds is 0 or at least 2, and corrects what evidence_prior, evidence_seeding or "
                "evidence_mining_power then use: set one of them"
            )
        return self

    @property
    def uses_regression(self) -> bool:
        """Whether boxes are regressed: a part of MIST."""
        return self.method == "mist" and self.mist.regression

    @property
    def learns_from_evidence(self) -> bool:
        """Whether training looks at what the maps say of proposals."""
        return self.evidence_prior > 0 or self.evidence_seeding > 0 or self.evidence_mining_power > 0
