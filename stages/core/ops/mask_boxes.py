"""The tight box of a binary mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def mask_to_box(mask_HW: NDArray[Any]) -> NDArray[np.float32]:
    """Return the tight half-open xyxy box (4,) of a mask in pixels; all zeros for an empty one."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    if len(rows) == 0:
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
