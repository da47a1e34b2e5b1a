"""From the candidates of all sources to the proposals of an image: three optional NMS and a cap.

Published: NMS at 0.3 among grid boxes by predicted IoU, at 0.9 among cross-attention boxes in list order,
nothing across sources. Better, and the default: one NMS over all by predicted IoU in which a survivor takes
over the sources of what it suppressed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.core.artifacts.schemas import SOURCE_BITS
from stages.core.ops.nms import nms_in_order, nms_merging_sources
from stages.propose.candidates import Candidates
from stages.propose.config import ProposeConfig


def merge_candidates(candidates: Candidates, config: ProposeConfig) -> Candidates:
    """Thin the candidates of one image.

    Args:
        candidates: In published order: grid, coarse, fine, cross.
        config: NMS thresholds and the cap.

    Returns:
        By descending rank after a union NMS or a cap, else in published order (the grid by predicted IoU
        if its NMS ran).
    """
    parts = [_of_source(candidates, name) for name in SOURCE_BITS]
    if config.grid_nms < 1:
        parts[0] = _by_score(parts[0], config.grid_nms)
    if config.cross_nms < 1:
        in_order = config.cross_nms_by == "order"
        parts[3] = (
            _in_order(parts[3], config.cross_nms) if in_order else _by_score(parts[3], config.cross_nms)
        )
    merged = Candidates.concat(parts)
    if config.union_nms < 1:
        merged = _by_score(merged, config.union_nms)
    if config.max_boxes and len(merged) > config.max_boxes:
        best = torch.argsort(merged.predicted_iou, descending=True, stable=True)
        merged = merged.select(best[: config.max_boxes])
    return merged


def _of_source(candidates: Candidates, name: str) -> Candidates:
    index: Tensor = (candidates.source == SOURCE_BITS[name]).nonzero().squeeze(1)
    return candidates.select(index)


def _by_score(candidates: Candidates, iou: float) -> Candidates:
    keep, source = nms_merging_sources(
        candidates.boxes_xyxy, candidates.predicted_iou, candidates.source, iou
    )
    return candidates.select(keep).with_source(source)


def _in_order(candidates: Candidates, iou: float) -> Candidates:
    return candidates.select(nms_in_order(candidates.boxes_xyxy, iou))
