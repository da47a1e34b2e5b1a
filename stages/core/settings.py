"""Settings that several stages share, each declared once: its name, unit, range and help.

A stage inherits the pieces it needs and repeats a field only to give it another default (`lr: LearningRate = 1e-5`).
Names are those of timm, detectron2, torchvision and segment-anything where these have one. No torch here: `--help` must
not load it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.core.config import OnlyWith, Settings

# Backbone.
BackboneName = Annotated[
    str,
    Field(
        description="Feature extractor: lite0-embedded (shipped), resnet50-fpn, resnet50-fpn-v2, or any timm model"
        " that returns feature maps"
    ),
]
OutStrides = Annotated[
    tuple[int, ...],
    Field(
        min_length=1, description="Strides of the backbone's maps that are used, pixels per cell, ascending"
    ),
]
FreezeThroughStride = Annotated[
    int,
    Field(
        ge=0,
        description="Backbone layers up to this stride (pixels per cell) keep their pretrained weights; 0 trains all",
    ),
]

FcDim = Annotated[
    int,
    Field(ge=8, le=8192, description="Units of each of the two fully connected layers behind RoI pooling"),
]

# Training.
Epochs = Annotated[int, Field(ge=1, le=10_000, description="Passes over the training images")]
BatchSize = Annotated[int, Field(ge=1, le=4096, description="Images per micro-batch, all processes together")]
LearningRate = Annotated[float, Field(gt=0, description="Learning rate of new layers")]
BackboneLrFactor = Annotated[
    float, Field(ge=0, le=10, description="Learning rate of the pretrained backbone, multiple of lr")
]
OptimizerName = Literal["adam", "adamw", "sgd"]
ScheduleName = Literal["cosine", "multistep"]
Optimizer = Annotated[
    OptimizerName,
    Field(description="Optimizer; adam couples weight decay with the gradient, sgd has a momentum of 0.9"),
]
WeightDecay = Annotated[
    float, Field(ge=0, le=1, description="Weight decay of matrices and kernels; biases and norms have none")
]
WarmupFraction = Annotated[
    float, Field(ge=0, lt=1, description="Fraction of the training steps with a linear warm-up of the rate")
]
WarmupFactor = Annotated[
    float,
    Field(ge=0, le=1, description="Warm-up starts at this fraction of the rate; published for MIST: 1/3"),
]
EmaDecay = Annotated[
    float,
    Field(
        ge=0, lt=1, description="Decay per step of the weight average that is used in the end; 0 = no average"
    ),
]

# Images.
TrainShortSides = Annotated[
    tuple[Annotated[int, Field(ge=16)], ...],
    Field(min_length=1, description="Short sides of training images, pixels; one is drawn per image"),
]
TestShortSide = Annotated[int, Field(ge=16, le=10_000, description="Short side of images at test, pixels")]
MaxSize = Annotated[
    int,
    Field(
        ge=32, le=10_000, description="Largest long side of an image, pixels; larger ones are shrunk to it"
    ),
]
HflipProb = Annotated[
    float, Field(ge=0, le=1, description="Probability that a training image is flipped horizontally")
]
ColorJitter = Annotated[
    float,
    Field(ge=0, le=1, description="Strength of the color jitter in training; 0 = none"),
]

# Detections.
ScoreThresh = Annotated[
    float, Field(ge=0, lt=1, description="Detections must score more than this to be written")
]
NmsThresh = Annotated[
    float,
    Field(gt=0, le=1, description="Class-wise NMS drops the lower of two boxes above this IoU; 1 = no NMS"),
]

# Segmenter.
PromptsPerBatch = Annotated[
    int, Field(ge=1, le=4096, description="Prompts per call of the mask decoder; memory grows with it")
]


class BackboneSettings(Settings):
    """The pretrained feature extractor."""

    backbone: BackboneName = "lite0-embedded"
    pretrained: bool = Field(True, description="Start from ImageNet weights; false draws random ones")
    backbone_weights: str = Field(
        "",
        description="Safetensors file of backbone weights; empty takes the backbone's own ImageNet weights",
    )

    def backbone_source(self) -> bool | Path:
        """Where the backbone's weights come from: a file, ImageNet (True), or nowhere (False)."""
        return Path(self.backbone_weights) if self.pretrained and self.backbone_weights else self.pretrained

    def weight_files(self, *, trains: bool) -> dict[str, Path]:
        """Add the file of the backbone's weights, if one is given."""
        source = self.backbone_source()
        own = {"backbone_weights": source} if trains and isinstance(source, Path) else {}
        return super().weight_files(trains=trains) | own


class TrainingSettings(Settings):
    """Length and rates of a training."""

    epochs: Epochs = 10
    batch_size: BatchSize = 4
    grad_accum_steps: int = Field(
        1, ge=1, le=1024, description="Micro-batches whose gradients make one step of the optimizer"
    )
    lr: LearningRate = 1e-3
    backbone_lr_factor: BackboneLrFactor = 0.3
    weight_decay: WeightDecay = 0.05
    warmup_fraction: WarmupFraction = 0.05
    num_threads: int = Field(
        1, ge=1, le=1024, description="CPU threads while training; the last bits of the weights depend on it"
    )


class OptimizerSettings(TrainingSettings):
    """Optimizer, schedule, clipping and averaging of a detector's training."""

    optimizer: Optimizer = "adamw"
    schedule: ScheduleName = Field("cosine", description="Decay of the learning rate")
    milestones: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...], OnlyWith("schedule", ("multistep",))
    ] = Field((0.67, 0.89), description="Fractions of the training after which the rate falls to a tenth")
    warmup_factor: WarmupFactor = 0.001
    clip_grad_norm: float = Field(10.0, ge=0, description="Largest norm of the gradient; 0 does not clip")
    ema_decay: EmaDecay = 0.0


class ImageSettings(Settings):
    """Sizes and augmentation of a detector's images."""

    train_short_sides: TrainShortSides = (192, 224, 256)
    test_short_side: TestShortSide = 224
    max_size: MaxSize = 2000
    hflip_prob: HflipProb = 0.5
    color_jitter: ColorJitter = 0.0


class TtaSettings(Settings):
    """Test-time augmentation."""

    tta: bool = Field(
        False, description="Merge the detections of several sizes, each plain and horizontally flipped"
    )
    tta_short_sides: tuple[Annotated[int, Field(ge=16)], ...] = Field(
        (),
        description="tta: short sides of the views beside test_short_side, pixels; none = train_short_sides",
    )


class DetectionSettings(Settings):
    """Which detections are written."""

    score_thresh: ScoreThresh = 0.05
    nms_thresh: NmsThresh = 0.5
    detections_per_image: int = Field(
        100, ge=1, le=10_000, description="Detections kept per image, over all classes"
    )


class SegmenterSettings(Settings):
    """The promptable segmenter."""

    segmenter: str = Field(
        "sam-nano",
        description="Promptable segmenter: sam-nano or sam-nano-photo (shipped), or a name of `weaksam weights list`",
    )
    segmenter_weights: str = Field(
        "", description="Segmenter weights: file, folder or hub id; empty takes the shipped or cached ones"
    )
    prompts_per_batch: PromptsPerBatch = 64

    def uses_segmenter(self, *, trains: bool) -> bool:
        """Return whether there is anything for the segmenter to do."""
        return True

    def weight_files(self, *, trains: bool) -> dict[str, Path]:
        """Add the segmenter's weights: those given, else those of its name if they are there."""
        from stages.core.weights.cache import cached
        from stages.core.weights.table import find_weights

        found = super().weight_files(trains=trains)
        if not self.uses_segmenter(trains=trains):
            return found
        path = (
            Path(self.segmenter_weights) if self.segmenter_weights else cached(find_weights(self.segmenter))
        )
        return found if path is None else found | {"segmenter_weights": path}


class BoxToMaskSettings(SegmenterSettings):
    """Masks from boxes.

    A promptable segmenter is prompted with every box; see `stages.core.segmenters.box_to_mask`.
    """

    prompts_per_batch: PromptsPerBatch = 32
    mask_choice: Literal["single", "best-of-three", "best-fit"] = Field(
        "best-fit",
        description="One mask per box; or three, best by predicted IoU; or best by predicted IoU x fit to the box",
    )
    box_margin_fraction: float = Field(
        0.05, ge=0, le=1, description="A mask may exceed its box by this fraction of the side, on each side"
    )
    largest_component: bool = Field(True, description="Keep only the largest 8-connected component of a mask")
    min_mask_area_fraction: float = Field(
        0.01, ge=0, lt=1, description="Smallest area of a mask, as a fraction of its box's"
    )
