"""Prompt points as table rows, and the boxes of proposals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.propose.config import ProposeConfig

OPEN = ProposeConfig(
    points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0, prompt_pred_iou_thresh=0.0,
    prompt_stability_score_thresh=0.0,
    refine_top_k=0, union_nms_thresh=1.0, max_proposals=0, min_side_px=1.0,
)  # fmt: skip
Columns = dict[str, NDArray[Any]]


def prompt_rows(*points: tuple[float, float, int, int]) -> Columns:
    """Columns of ``prompts.h5`` from (x, y, class, source)."""
    x, y, classes, sources = zip(*points, strict=True) if points else ((), (), (), ())
    n = len(points)
    return {
        "x": np.array(x, np.float32), "y": np.array(y, np.float32), "class_index": np.array(classes, np.int32),
        "score": np.linspace(0.95, 1.0, n, dtype=np.float32), "source": np.array(sources, np.int8),
        "layer": np.full(n, -1, np.int16), "head": np.full(n, -1, np.int16), "cluster": np.full(n, -1, np.int32),
    }  # fmt: skip


PEAKS = prompt_rows(
    (10, 9, 2, 0), (40, 30, 2, 0), (20, 20, 1, 0), (41, 30, 2, 1), (5, 40, -1, 2), (50, 8, -1, 2)
)


def boxes_of(rows: Any) -> NDArray[np.float32]:
    return np.stack([rows.columns[name] for name in ("x1", "y1", "x2", "y2")], axis=1)
