"""Settings of `wsis`: how boxes become masks, and the segmenter trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stages.core.config import OnlyWith, Settings, StageConfig
from stages.core.detectors.settings import Augmentation, DetectorSettings, MaskRcnnSettings, spec_values
from stages.core.detectors.spec import DetectorSpec, Mask2FormerSpec
from stages.core.settings import BoxToMaskSettings


class Mask2FormerSettings(Settings):
    """Mask2Former, the part behind the backbone."""

    d_model: int = Field(64, ge=8, le=4096, description="Channels of pixel decoder, decoder and masks")
    num_heads: int = Field(8, ge=1, le=128, description="Heads of every attention layer")
    dim_feedforward: int = Field(256, ge=8, le=65_536, description="Hidden units of a decoder layer")
    encoder_dim_feedforward: int = Field(
        256, ge=8, le=65_536, description="Hidden units of a layer of the pixel decoder"
    )
    num_encoder_layers: int = Field(2, ge=1, le=100, description="Layers of the pixel decoder")
    num_decoder_layers: int = Field(
        3, ge=1, le=100, description="Decoder layers; losses of each and of the learnt queries"
    )
    num_queries: int = Field(40, ge=1, le=100_000, description="Masks proposed per image")
    num_points: int = Field(
        2048, ge=16, le=1_000_000, description="Points of a mask at which its loss is taken"
    )


class WsisConfig(DetectorSettings, BoxToMaskSettings, StageConfig):
    """Pseudo masks from pseudo boxes, then Mask R-CNN or Mask2Former."""

    main_settings: ClassVar[tuple[str, ...]] = (
        "segmenter",
        "mask_choice",
        "architecture",
        "backbone",
        "epochs",
        "lr",
        "batch_size",
        "train_short_sides",
        "test_short_side",
        "tta",
    )
    headings: ClassVar[Mapping[str, str]] = {
        "mask_source": "Masks from boxes",
        "architecture": "Segmenter trained on the masks",
    }

    mask_source: Literal["prompt", "given"] = Field(
        "prompt", description="prompt: ask the segmenter; given: the pseudo ground truth already holds masks"
    )
    architecture: Literal["mask-rcnn", "mask2former"] = Field(
        "mask-rcnn", description="mask-rcnn; mask2former needs the extra hf"
    )
    mask_rcnn: Annotated[MaskRcnnSettings, OnlyWith("architecture", ("mask-rcnn",))] = Field(
        MaskRcnnSettings(), description="Mask R-CNN behind the backbone"
    )
    mask2former: Annotated[Mask2FormerSettings, OnlyWith("architecture", ("mask2former",))] = Field(
        Mask2FormerSettings(), description="Mask2Former behind the backbone"
    )
    crop_size: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Large-scale jitter: images are scaled to a square of this side times 0.1 to 2, then cropped or"
        " padded to it, pixels; 0: a short side is drawn",
    )

    def augmentation(self) -> Augmentation:
        """What happens to a training image."""
        return replace(super().augmentation(), crop_size=self.crop_size)

    def uses_segmenter(self, *, trains: bool) -> bool:
        """Return whether masks are made here."""
        return trains and self.mask_source == "prompt"

    def detector_spec(self) -> DetectorSpec | Mask2FormerSpec:
        """The part that a checkpoint is rebuilt from."""
        if self.architecture == "mask2former":
            values = spec_values(Mask2FormerSpec, self, self.mask2former)
            return Mask2FormerSpec(**values | {"nms_thresh": 1.0})
        return DetectorSpec(kind="mask-rcnn", **spec_values(DetectorSpec, self, self.mask_rcnn))
