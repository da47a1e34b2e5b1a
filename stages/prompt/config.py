"""Settings of `prompt`. Defaults seek peaks on the map's grid; the recipe `paper`, as Algorithm 1, on the image."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.core.config import StageConfig


class PromptConfig(StageConfig):
    """Peak points of the maps, and the thinning of the many cross-attention peaks."""

    resolution: Literal["image", "grid"] = Field(
        "grid",
        description="where peaks are sought: image = maps enlarged to the image, windows in pixels; "
        "grid = map cells with sub-pixel refinement, windows still in pixels",
    )
    window: int = Field(33, ge=3, description="max-pool window of coarse and fine maps, odd, image pixels")
    cross_window: int = Field(65, ge=3, description="max-pool window of cross maps, odd, image pixels")
    threshold: float = Field(
        0.9, ge=0, le=1, description="tau for coarse and fine peaks: share of the map's maximum"
    )
    cross_threshold: float = Field(0.9, ge=0, le=1, description="tau for cross peaks")
    max_peaks: int = Field(25, ge=1, description="peaks per map at most")
    clustering: Literal["kmeans", "merge", "none"] = Field(
        "merge",
        description="cross peaks: kmeans = paper, all classes together, n // 5 clusters; merge = per class",
    )
    merge_radius: float = Field(24.0, gt=0, description="merge: peaks this close are one, image pixels")
    merge_support: int = Field(
        2, ge=1, description="merge: clusters of fewer peaks are dropped, unless none is left"
    )

    @model_validator(mode="after")
    def _check(self) -> PromptConfig:
        for name in ("window", "cross_window"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd")
        return self
