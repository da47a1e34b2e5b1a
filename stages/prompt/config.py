"""Settings of `prompt`. Defaults seek peaks on the map's grid; the recipe `paper`, as Algorithm 1, on the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.config import OnlyWith, StageConfig

MERGING = OnlyWith("clustering", ("merge",))


class PromptConfig(StageConfig):
    """Peak points of the maps, and the thinning of the many cross-attention peaks."""

    main_settings: ClassVar[tuple[str, ...]] = (
        "resolution",
        "peak_thresh",
        "cross_peak_thresh",
        "window_px",
        "cross_window_px",
        "max_peaks_per_map",
        "clustering",
    )
    headings: ClassVar[Mapping[str, str]] = {
        "clustering": "Clusters of cross peaks",
    }

    resolution: Literal["image", "grid"] = Field(
        "grid",
        description="Where peaks are sought: image = maps enlarged to the image, windows in pixels; "
        "grid = map cells with sub-pixel refinement, windows still in pixels",
    )
    window_px: int = Field(
        33, ge=3, le=10_001, description="Max-pool window of coarse and fine maps, odd, image pixels"
    )
    cross_window_px: int = Field(
        65, ge=3, le=10_001, description="Max-pool window of cross maps, odd, image pixels"
    )
    peak_thresh: float = Field(
        0.9,
        ge=0,
        le=1,
        description="tau of coarse and fine maps: a peak's value as a fraction of the map's maximum",
    )
    cross_peak_thresh: float = Field(
        0.9, ge=0, le=1, description="tau of cross maps: a peak's value as a fraction of the map's maximum"
    )
    max_peaks_per_map: int = Field(25, ge=1, le=10_000, description="Peaks kept per map, the highest first")
    clustering: Literal["kmeans", "merge", "none"] = Field(
        "merge",
        description="Cross peaks: kmeans = paper, all classes together, n // 5 clusters; merge = per class",
    )
    merge_radius_px: Annotated[float, MERGING] = Field(
        24.0, gt=0, le=10_000, description="Peaks at most this far apart are one, image pixels"
    )
    merge_min_peaks: Annotated[int, MERGING] = Field(
        2, ge=1, le=10_000, description="Clusters of fewer peaks are dropped, unless none is left"
    )

    @model_validator(mode="after")
    def _check(self) -> PromptConfig:
        for name in ("window_px", "cross_window_px"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd")
        return self
