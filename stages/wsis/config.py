"""Settings of `wsis`: how boxes become masks, and the Mask R-CNN trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from stages.core.config import StageConfig
from stages.core.detectors.settings import DetectorSettings, MaskRcnnSettings, spec_values
from stages.core.detectors.spec import DetectorSpec
from stages.core.settings import BoxToMaskSettings


class WsisConfig(DetectorSettings, BoxToMaskSettings, StageConfig):
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

    mask_source: Literal["prompt", "given"] = Field(
        "prompt", description="prompt: ask the segmenter; given: the pseudo ground truth already holds masks"
    )
    mask_rcnn: MaskRcnnSettings = Field(MaskRcnnSettings(), description="Mask R-CNN behind the backbone")

    def detector_spec(self) -> DetectorSpec:
        """The part that a checkpoint is rebuilt from."""
        return DetectorSpec(kind="mask-rcnn", **spec_values(DetectorSpec, self, self.mask_rcnn))
