"""Settings that every detector trained on pseudo ground truth has.

The stages `retrain` and `wsis` add their own fields. Defaults are the small CPU setting of the embedded data
set; the published values are the recipe `paper` (R50-FPN, 16 images, SGD 0.02, docs/method.md, section 7.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from stages.core.config import OnlyWith, Settings
from stages.core.detectors.spec import BoxLoss, Heads, PredictorInit
from stages.core.settings import (
    BackboneSettings,
    ColorJitter,
    DetectionSettings,
    EmaDecay,
    Epochs,
    FcDim,
    FreezeThroughStride,
    ImageSettings,
    LearningRate,
    MaxSize,
    OptimizerSettings,
    OutStrides,
    TestShortSide,
    TrainShortSides,
    TtaSettings,
)


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image.

    Attributes:
        train_short_sides: one is drawn per image, pixels.
        max_size: limit of the long side, pixels.
        hflip_prob: probability of a horizontal flip.
        color_jitter: strength of brightness, contrast and saturation jitter, 0 (none) to 1.
        crop_size: side of the square that images are scaled to and cropped or padded to in large-scale jitter, pixels;
            0: a short side is drawn instead.
        jitter_scales: smallest and largest factor of large-scale jitter.
    """

    train_short_sides: tuple[int, ...]
    max_size: int
    hflip_prob: float = 0.5
    color_jitter: float = 0.0
    crop_size: int = 0
    jitter_scales: tuple[float, float] = (0.1, 2.0)


class TwoStageSettings(Settings):
    """Faster R-CNN, the part of the detector behind the backbone."""

    heads: Heads = Field(
        "v1",
        description="v2: pyramid and heads of torchvision's R50-FPN v2, deeper and normalized",
    )
    fpn_channels: int = Field(64, ge=8, le=4096, description="Channels of every pyramid level")
    anchor_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (32, 64, 128),
        min_length=1,
        description="Square root of the anchors' area, pixels, one per level; one more adds a pooled level",
    )
    aspect_ratios: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, description="Height / width of the anchors"
    )
    rpn_pre_nms_top_n: int = Field(
        400,
        ge=10,
        le=100_000,
        description="Proposals per level before their NMS in training; half as many at test",
    )
    box_batch_size_per_image: int = Field(
        32, ge=4, le=100_000, description="RoIs sampled per image for the second stage in training"
    )
    fc_dim: FcDim = 256
    box_loss: BoxLoss = Field("l1", description="Regression loss: l1 (paper), or smooth-l1 with beta 1/9")
    matcher: Literal["iou", "top-k"] = Field(
        "iou",
        description="iou: every RoI of IoU >= 0.5 is positive; top-k: only the best of each box (ablation)",
    )
    match_top_k: Annotated[int, OnlyWith("matcher", ("top-k",))] = Field(
        3, ge=1, le=1000, description="Positive RoIs per box"
    )
    rpn_box_loss: BoxLoss = Field(
        "smooth-l1",
        description="Regression loss of region proposals: smooth-l1 with beta 1/9, or l1 (published)",
    )
    sampling_ratio: int = Field(
        2,
        ge=0,
        le=100,
        description="RoIAlign samples per bin and side; 0: one per cell of the box (published)",
    )
    predictor_init: PredictorInit = Field(
        "uniform",
        description="First weights of the box predictor: uniform, as torch's; normal, as published",
    )


class MaskRcnnSettings(TwoStageSettings):
    """Mask R-CNN: Faster R-CNN with a mask head."""

    mask_channels: int = Field(64, ge=8, le=4096, description="Channels of the mask head")


class DetectorSettings(DetectionSettings, TtaSettings, ImageSettings, OptimizerSettings, BackboneSettings):
    """Architecture and training of a detector on pseudo ground truth."""

    out_strides: OutStrides = (8, 16, 32)
    freeze_through_stride: FreezeThroughStride = 8
    train_short_sides: TrainShortSides = (176, 192, 208)
    test_short_side: TestShortSide = 192
    max_size: MaxSize = 256
    color_jitter: ColorJitter = 0.5
    epochs: Epochs = 6
    lr: LearningRate = 1e-3
    lr_base_size: int = Field(
        4, ge=1, le=1_000_000, description="Images per step that lr is meant for; lr is scaled linearly"
    )
    decay_biases: bool = Field(False, description="Weight decay of biases, too (published for Faster R-CNN)")
    ema_decay: EmaDecay = 0.995

    def view_sizes(self, trained_at: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Short sides, pixels, of the views that detections are merged from; none without `tta`.

        Args:
            trained_at: those of the training of a detector that these settings have not trained, used unless
                `tta_short_sides` are given (`checkpoints.recorded_view_sizes`).
        """
        return (self.tta_short_sides or trained_at or self.train_short_sides) if self.tta else ()

    def augmentation(self) -> Augmentation:
        """What happens to a training image."""
        return Augmentation(self.train_short_sides, self.max_size, self.hflip_prob, self.color_jitter)


def spec_values(spec: type[BaseModel], *settings: Settings) -> dict[str, Any]:
    """The settings that a checkpoint's specification holds, by name; later ones win."""
    return {
        name: getattr(group, name)
        for group in settings
        for name in type(group).model_fields
        if name in spec.model_fields
    }
