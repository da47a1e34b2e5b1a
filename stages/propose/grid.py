"""The regular grid of single-point prompts (Segment Anything, "automatic mask generation")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def grid_points(side: int, height: int, width: int) -> NDArray[np.float32]:
    """Centres of ``side x side`` equal cells of the image, row by row.

    Returns:
        ``(side * side, 2)`` x, y in pixels, 0-based; strictly inside the image.
    """
    centres = (np.arange(side) + 0.5) / max(side, 1)
    y, x = np.meshgrid(centres * height, centres * width, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
