"""Settings of `wsis`: how boxes become masks, and the Mask R-CNN trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from stages.core.config import StageConfig
from stages.core.detectors.settings import DetectorSettings, MaskRcnnSettings, spec_values
from stages.core.detectors.spec import DetectorSpec
from stages.core.settings import PromptsPerBatch, SegmenterSettings


class WsisConfig(DetectorSettings, SegmenterSettings, StageConfig):
    """Pseudo masks from pseudo boxes, then Mask R-CNN."""

    main_settings: ClassVar[tuple[str, ...]] = (
        "segmenter",
        "mask_choice",
        "box_margin_fraction",
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
    }

    prompts_per_batch: PromptsPerBatch = 32
    mask_source: Literal["prompt", "given"] = Field(
        "prompt", description="prompt: ask the segmenter; given: the pseudo ground truth already holds masks"
    )
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
    mask_rcnn: MaskRcnnSettings = Field(MaskRcnnSettings(), description="Mask R-CNN behind the backbone")

    def detector_spec(self) -> DetectorSpec:
        """The part that a checkpoint is rebuilt from."""
        return DetectorSpec(kind="mask-rcnn", **spec_values(DetectorSpec, self, self.mask_rcnn))
