"""Settings of the proposal stage; the defaults are ours, the recipe ``paper`` holds the published ones.

Settings of the grid have the names of segment-anything's automatic mask generator, and its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stages.core.config import StageConfig
from stages.core.settings import SegmenterSettings

PromptSource = Literal["coarse", "fine", "cross"]
MaskIndex = Literal[0, 1, 2]


class ProposeConfig(SegmenterSettings, StageConfig):
    """How boxes are proposed."""

    main_settings: ClassVar[tuple[str, ...]] = (
        "segmenter",
        "segmenter_weights",
        "points_per_side",
        "prompt_sources",
        "pred_iou_thresh",
        "stability_score_thresh",
        "refine_top_k",
        "union_nms_thresh",
        "max_proposals",
        "crop_n_layers",
    )
    headings: ClassVar[Mapping[str, str]] = {
        "points_per_side": "Grid",
        "prompt_sources": "Prompts",
        "refine_top_k": "Second pass and what is kept",
        "crop_n_layers": "Crops of the image",
        "min_side_px": "Small boxes, speed and masks",
    }

    points_per_side: int = Field(
        10, description="Grid points per side of the image, 0 for no grid", ge=0, le=128
    )
    grid_masks: tuple[MaskIndex, ...] = Field(
        (0, 1, 2), description="Which of the three masks of a grid point are candidates", min_length=1
    )
    pred_iou_thresh: float = Field(
        0.3, description="Grid masks need a predicted IoU above this; 0 = no filter", ge=0.0, le=1.0
    )
    stability_score_thresh: float = Field(
        0.0, description="Grid masks need at least this stability score; 0 = no filter", ge=0.0, le=1.0
    )
    stability_score_offset: float = Field(
        1.0,
        description="Distance, in logits, from the mask threshold of the two cuts whose IoU is the stability score",
        gt=0.0,
        le=10.0,
    )
    box_nms_thresh: float = Field(
        1.0, description="NMS among grid boxes by rank drops a box above this IoU; 1 = no NMS", gt=0.0, le=1.0
    )
    box_nms_inclusive: bool = Field(
        False,
        description="NMS among grid boxes measures from first to last pixel, one short, as segment-anything does",
    )
    prompt_sources: tuple[PromptSource, ...] = Field(
        ("coarse", "fine", "cross"), description="Prompt kinds used beside the grid"
    )
    class_prompts: bool = Field(
        True, description="Prompt also with all coarse (fine) points of a class as one multi-point prompt"
    )
    prompt_masks: tuple[MaskIndex, ...] = Field(
        (0, 1, 2), description="Which of the three masks of a point prompt are candidates", min_length=1
    )
    prompt_pred_iou_thresh: float = Field(
        0.3, description="Masks of prompts need a predicted IoU above this; 0 = no filter", ge=0.0, le=1.0
    )
    prompt_stability_score_thresh: float = Field(
        0.0, description="Masks of prompts need at least this stability score; 0 = no filter", ge=0.0, le=1.0
    )
    cross_nms_thresh: float = Field(
        1.0,
        description="NMS among boxes of cross-attention prompts drops a box above this IoU; 1 = no NMS",
        gt=0.0,
        le=1.0,
    )
    cross_nms_by: Literal["order", "rank"] = Field(
        "rank", description="What decides among boxes of cross-attention prompts: list order (paper) or rank"
    )
    refine_top_k: int = Field(
        100,
        description="Best boxes of the first pass that become prompts of a second, which takes its place; 0 = one pass",
        ge=0,
        le=10_000,
    )
    refine_nms_thresh: float = Field(
        0.8,
        description="NMS by rank before the second pass drops a box above this IoU; 1 = no NMS",
        gt=0.0,
        le=1.0,
    )
    union_nms_thresh: float = Field(
        0.95,
        description="NMS by rank over the boxes of all sources drops a box above this IoU, and the box that is kept"
        " takes over its sources; 1 = no NMS",
        gt=0.0,
        le=1.0,
    )
    rank_by: Literal["predicted_iou", "quality"] = Field(
        "quality",
        description="Rank of a box: its predicted IoU, or quality = predicted IoU x stability score",
    )
    max_proposals: int = Field(
        150, description="Boxes kept per image, by rank; 0 = no limit", ge=0, le=100_000
    )
    crop_n_layers: int = Field(
        0,
        description="Layers of crops that are proposed from beside the image; layer i has 2^i x 2^i; 0 = none",
        ge=0,
        le=4,
    )
    crop_overlap_ratio: float = Field(
        512 / 1500,
        description="How far crops of layer 1 overlap, as a fraction of the image's shorter side; halved per layer",
        ge=0.0,
        lt=1.0,
    )
    crop_n_points_downscale_factor: int = Field(
        1,
        description="Grid points per side of a crop: those of the layer before, divided by this",
        ge=1,
        le=16,
    )
    crop_nms_thresh: float = Field(
        0.7,
        description="NMS across crops, in which smaller crops win, drops a box above this IoU; 1 = no NMS",
        gt=0.0,
        le=1.0,
    )
    crop_edge_tolerance_px: float = Field(
        20.0,
        description="Boxes of a crop this close to one of its inner edges are dropped, pixels of the image",
        ge=0.0,
        le=1000.0,
    )
    min_side_px: float = Field(
        2.0, description="Boxes with a shorter side are dropped, pixels", ge=0.0, le=10_000.0
    )
    min_area_px: float = Field(0.0, description="Boxes of a smaller area are dropped, square pixels", ge=0.0)
    compile: bool = Field(
        False,
        description="Compile the image encoder (torch.compile, static shapes): minutes at the start, then faster",
    )
    save_masks: bool = Field(False, description="Store the mask of every kept box as COCO RLE")

    @field_validator("grid_masks", "prompt_masks", "prompt_sources")
    @classmethod
    def _unique(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError("a value occurs twice")
        return values

    @model_validator(mode="after")
    def _some_prompt(self) -> ProposeConfig:
        if self.points_per_side == 0 and not self.prompt_sources:
            raise ValueError("points_per_side 0 and no prompt_sources leave nothing to prompt with")
        return self
