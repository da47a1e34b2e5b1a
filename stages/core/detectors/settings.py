"""Settings that every trained detector has: architecture, input size, optimiser, augmentation.

The rooms `retrain` and `wsis` add their own fields. Defaults are the small CPU setting of the embedded data
set; the published values are the recipe `paper` (R50-FPN, 16 images, SGD 0.02, docs/method.md, section 7.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from stages.core.config import StageConfig
from stages.core.detectors.spec import BoxLoss, DetectorSpec, Heads, Kind


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image.

    Attributes:
        short_sides: one is drawn per image, pixels.
        max_size: limit of the long side, pixels.
        flip: probability of a horizontal flip.
        photometric: strength of brightness, contrast and saturation jitter, 0 (none) to 1.
    """

    short_sides: tuple[int, ...]
    max_size: int
    flip: float = 0.5
    photometric: float = 0.0


class DetectorSettings(StageConfig):
    """Architecture and training of a two-stage detector."""

    backbone: str = Field(
        "lite0-embedded", description="trunk: lite0-embedded, resnet50-fpn(-v2), or any timm feature model"
    )
    heads: Heads = Field(
        "v1",
        description="v2: pyramid and heads of torchvision's R50-FPN v2, deeper and normalised",
    )
    strides: tuple[int, ...] = Field(
        (8, 16, 32), min_length=1, description="trunk maps under the pyramid, pixels per cell"
    )
    frozen_through: int = Field(
        8, ge=0, description="trunk layers up to this stride keep their pretrained weights; 0 trains all"
    )
    fpn_channels: int = Field(64, ge=8, description="channels of every pyramid level")
    anchor_sizes: tuple[int, ...] = Field(
        (32, 64, 128),
        min_length=1,
        description="anchor side per level, pixels; one more adds a pooled level",
    )
    anchor_ratios: tuple[float, ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, description="anchor height / width"
    )
    test_size: int = Field(192, ge=32, description="short side at test, pixels")
    max_size: int = Field(256, ge=32, description="limit of the long side, pixels")
    train_sizes: tuple[int, ...] = Field(
        (176, 192, 208), min_length=1, description="short sides drawn in training, pixels"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    photometric: float = Field(0.5, ge=0, le=1, description="strength of the colour jitter; 0 = none")
    rpn_candidates: int = Field(
        400, ge=10, description="proposals per level before NMS in training; half at test"
    )
    rois_per_image: int = Field(32, ge=4, description="RoIs sampled for the second stage in training")
    head_width: int = Field(256, ge=16, description="units of the two fully connected layers")
    box_loss: BoxLoss = Field("l1", description="regression loss: l1 (paper) or smooth-l1 with beta 1/9")
    matcher: Literal["iou", "top-k"] = Field(
        "iou",
        description="iou: every RoI of IoU >= 0.5 is positive; top-k: only the best of each box (ablation)",
    )
    match_top_k: int = Field(3, ge=1, description="k of the top-k matcher")
    score_threshold: float = Field(0.05, ge=0, lt=1, description="detections below are not written")
    nms_iou: float = Field(0.5, gt=0, le=1, description="IoU of the final per-class NMS")
    max_detections: int = Field(100, ge=1, description="detections kept per image")
    tta: bool = Field(False, description="merge the detections of several sizes and of mirrored images")
    tta_sizes: tuple[int, ...] = Field(
        (), description="short sides of the views of tta, beside test_size; none = train_sizes"
    )

    epochs: int = Field(6, ge=1, description="passes over the images with pseudo boxes")
    batch_size: int = Field(4, ge=1, description="images per micro-batch, all processes together")
    accumulate: int = Field(
        1, ge=1, description="micro-batches whose gradients make one step of the optimiser"
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw, or sgd with momentum 0.9")
    lr: float = Field(1e-3, gt=0, description="learning rate of `lr_batch` images per step of the optimiser")
    lr_batch: int = Field(4, ge=1, description="images per step that `lr` is meant for; scaled linearly")
    trunk_lr_factor: float = Field(
        0.3, ge=0, le=1, description="the pretrained trunk learns at this share of lr"
    )
    weight_decay: float = Field(0.05, ge=0, description="weight decay of matrices and kernels")
    schedule: Literal["cosine", "steps"] = Field("cosine", description="decay of the learning rate")
    milestones: tuple[float, ...] = Field(
        (0.67, 0.89), description="schedule steps: shares of the training at which lr drops by 10"
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the training with a linear warm-up")
    clip_norm: float = Field(10.0, ge=0, description="largest gradient norm; 0 = no limit")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="decay of the weight average; 0 = none")
    threads: int = Field(1, ge=1, description="CPU threads while training; the last bits depend on it")

    def spec(self, kind: Kind, mask_channels: int = 256) -> DetectorSpec:
        """The part that a checkpoint is rebuilt from."""
        own = type(self).model_fields
        shared = {name: getattr(self, name) for name in DetectorSpec.model_fields if name in own}
        return DetectorSpec(**shared | {"kind": kind, "mask_channels": mask_channels})

    def view_sizes(self, trained_at: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Short sides, pixels, of the views that detections are merged from; none without `tta`.

        Args:
            trained_at: those of the training of a detector that these settings have not trained, used unless
                `tta_sizes` are given (`checkpoints.recorded_view_sizes`).
        """
        return (self.tta_sizes or trained_at or self.train_sizes) if self.tta else ()

    def augmentation(self) -> Augmentation:
        """What happens to a training image."""
        return Augmentation(self.train_sizes, self.max_size, self.flip, self.photometric)
