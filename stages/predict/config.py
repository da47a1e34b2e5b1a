"""Settings of `predict`: what is kept of the detections, and what is made of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stages.core.config import StageConfig
from stages.core.settings import BoxToMaskSettings


class PredictConfig(BoxToMaskSettings, StageConfig):
    """Detections of new images, with masks and pictures if asked for."""

    score_thresh: float = Field(0.3, ge=0, le=1, description="Least score of a detection")
    view_short_sides: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="Short sides, pixels, of the views that detections are merged from; none = the plain view",
    )
    masks: bool = Field(False, description="A mask for every box")
    pictures: bool = Field(True, description="Draw every image with its detections")

    def uses_segmenter(self, *, trains: bool) -> bool:
        """Return whether masks are asked for."""
        return self.masks
