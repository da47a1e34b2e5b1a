"""Maps out of `cams.h5`, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.table import Table
from stages.core.errors import SchemaError


def stored_map(cams: Table, rows: Mapping[str, NDArray[Any]], row: int, image_id: str) -> NDArray[np.float32]:
    """One map of an image on its grid, (grid_h, grid_w) in [0, 1]; whether it is finite is the reader's to check.

    Args:
        cams: The open table.
        rows: The image's columns, `cams.rows(image_id)`.
        row: Which of them.
        image_id: For the message.

    Raises:
        SchemaError: its values do not fit its grid.
    """
    start, count, height, width = (
        int(rows[name][row]) for name in ("value_start", "value_count", "grid_h", "grid_w")
    )
    values: NDArray[np.float32] = cams.pools["values"][start : start + count].astype(np.float32)
    if height < 1 or width < 1 or not len(values) == count == height * width:
        raise SchemaError(f"image {image_id}: map {row} has {len(values)} values on a {height}x{width} grid")
    return values.reshape(height, width)
