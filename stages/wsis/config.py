"""Settings of `wsis`: how boxes become masks, and the Mask R-CNN trained on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.core.detectors.settings import DetectorSettings


class WsisConfig(DetectorSettings):
    """Pseudo masks from pseudo boxes, then Mask R-CNN."""

    segmenter: str = Field(
        "sam-nano",
        description="promptable segmenter: sam-nano (shipped), or a name of `weaksam weights list`",
    )
    segmenter_checkpoint: str = Field(
        "", description="segmenter weights: file, folder or hub id; empty takes the shipped or cached ones"
    )
    mask_source: Literal["prompt", "given"] = Field(
        "prompt", description="prompt: ask the segmenter; given: the pseudo ground truth already holds masks"
    )
    mask_choice: Literal["single", "best-of-three", "best-fit"] = Field(
        "best-fit",
        description="one mask per box; or three, best by predicted IoU; or best by predicted IoU x fit to the box",
    )
    box_margin: float = Field(
        0.05, ge=0, le=1, description="mask may exceed its box by this share of the side, on each side"
    )
    largest_piece: bool = Field(True, description="keep only the largest connected piece of a mask")
    min_area: float = Field(0.01, ge=0, lt=1, description="smallest mask, as a share of its box")
    boxes_per_batch: int = Field(32, ge=1, description="boxes per decoder call")
    mask_channels: int = Field(64, ge=8, description="channels of the mask head")
