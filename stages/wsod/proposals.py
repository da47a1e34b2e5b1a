"""Proposals of an image as the detector uses them: clipped, not too small, each once (docs/method.md, section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.evidence import ProposalEvidence, stored_evidence
from stages.core.artifacts.schemas import PROPOSALS, rows_to_boxes
from stages.core.artifacts.table import read_table
from stages.core.structures.columns import Column, Columns
from stages.wsod.config import WsodConfig

Boxes = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Proposals(Columns):
    """Cleaned proposals of one image, in the table's order.

    Attributes:
        boxes_xyxy: (n, 4) half-open original pixels.
        quality: (n,) predicted IoU x stability, the segmenter's own opinion of each mask, in [0, 1]; 1 where the
            table holds neither.
    """

    boxes_xyxy: Annotated[Boxes, Column("float32", 4)]
    quality: Annotated[NDArray[np.float32], Column("float32")]


class ProposalSource:
    """Cleaned proposals of every image of `proposals.h5`.

    Args:
        path: The table; read once.
        config: `min_side_px`, `dedup_grid_px` and `max_proposals` are used.

    Raises:
        InputError: the file is missing or not a proposals table.
    """

    def __init__(self, path: Path, config: WsodConfig) -> None:
        self.table = read_table(path, PROPOSALS)
        self.config = config

    def boxes(self, image_id: str) -> Boxes:
        """Float32 (n, 4) half-open original pixels, in the table's order; empty for an image it does not hold."""
        return self.proposals(image_id).boxes_xyxy

    def proposals(self, image_id: str) -> Proposals:
        """Boxes (n, 4) with their quality (n,), in the table's order; none for an image that it does not hold."""
        if image_id not in self.table:
            return Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        rows, image = self.table.rows(image_id), self.table.image_row(image_id)
        boxes = rows_to_boxes(rows)
        keep = self._kept(image_id)
        limit = np.array([image["image_w"], image["image_h"]] * 2, np.float32)
        quality = np.nan_to_num(rows["predicted_iou"][keep] * rows["stability"][keep], nan=1.0)
        return Proposals(
            np.asarray(np.clip(boxes[keep], 0, limit), dtype=np.float32),
            np.asarray(np.clip(quality, 0, 1), dtype=np.float32),
        )

    def evidence(self, image_id: str) -> ProposalEvidence:
        """What the maps say of the boxes of `proposals`, in the same order."""
        if image_id not in self.table:
            return ProposalEvidence.empty(0)
        found = stored_evidence(self.table, image_id)
        return ProposalEvidence(found.classes, found.values[self._kept(image_id)])

    def _kept(self, image_id: str) -> NDArray[np.int64]:
        """Rows of the table that are used; the table holds the image."""
        rows, image = self.table.rows(image_id), self.table.image_row(image_id)
        return clean(
            rows_to_boxes(rows),
            rows["predicted_iou"],
            (image["image_h"], image["image_w"]),
            self.config.min_side_px,
            self.config.dedup_grid_px,
            self.config.max_proposals,
        )


def clean(
    boxes_xyxy: NDArray[Any],
    predicted_iou: NDArray[Any],
    size_hw: tuple[int, int],
    min_side_px: float,
    dedup_grid_px: float = 0.0,
    max_proposals: int = 2000,
) -> NDArray[np.int64]:
    """Ascending rows of the proposals to use.

    Boxes are judged as clipped to the image; one with a side below `min_side_px` or a coordinate that is not
    finite goes. Of boxes that agree after rounding to `dedup_grid_px` pixels (0: to whole pixels) the first
    stays. More than `max_proposals` are cut by predicted IoU.
    """
    height, width = size_hw
    finite = np.isfinite(boxes_xyxy).all(axis=1)
    clipped = np.clip(boxes_xyxy.astype(np.float64), 0, [width, height, width, height])
    sides = clipped[:, 2:] - clipped[:, :2]
    rows = np.flatnonzero(finite & (sides >= min_side_px).all(axis=1))
    keys = np.rint(clipped[rows] / (dedup_grid_px or 1.0)).astype(np.int64)
    rows = rows[np.sort(np.unique(keys, axis=0, return_index=True)[1])]
    if len(rows) > max_proposals:
        surest = np.argsort(-np.nan_to_num(predicted_iou[rows], nan=0.0), kind="stable")[:max_proposals]
        rows = np.sort(rows[surest])
    return rows
