"""Containment: the share of one box that lies inside another, and the rules that remove boxes by it.

A part of an object scores high but lies inside the box of the whole: |a and b| / |a| near 1 names it
(Algorithm 2, last step).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stages.core.ops.boxes import pairwise_containment

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]
Policy = Literal["drop_inner", "drop_lower"]


def containment(boxes_xyxy: Floats) -> Floats:
    """Entry (j, k) is |b_j and b_k| / |b_j|, in [0, 1]."""
    boxes = torch.from_numpy(boxes_xyxy)
    return np.asarray(pairwise_containment(boxes, boxes).numpy())


def simultaneous(boxes_xyxy: Floats, tau_o: float) -> NDArray[np.bool_]:
    """Algorithm 2: keep b_j if every other b_k covers less than `tau_o` of it; boxes come in descending score.

    Decided where the pseudo-code is silent: of two boxes that contain *each other* the better one wins
    instead of both going, and should all boxes still be removed in a ring, the best one stays, since
    Algorithm 2 never means to empty a class.
    """
    covered_JK = containment(boxes_xyxy) >= tau_o
    np.fill_diagonal(covered_JK, False)
    rank = np.arange(len(boxes_xyxy))
    mutual_and_better_JK = covered_JK & covered_JK.T & (rank[:, None] < rank[None, :])
    keep = np.asarray(~(covered_JK & ~mutual_and_better_JK).any(axis=1), dtype=bool)
    if len(keep) and not keep.any():
        keep[0] = True
    return keep


def ordered(
    boxes_xyxy: Floats, tau_o: float, policy: Policy = "drop_inner", keep_top1: bool = True
) -> NDArray[np.bool_]:
    """Containment in descending score: each box is judged only against boxes accepted so far.

    drop_inner: a box inside an accepted one is refused; accepted boxes inside a new one are taken back (the
    whole replaces its parts).
    drop_lower: whichever of the two scores lower goes. keep_top1: the class's best box is never taken
    back; a box that would have replaced it is refused. At least one box always survives.
    """
    covered_JK = containment(boxes_xyxy) >= tau_o
    keep = np.zeros(len(boxes_xyxy), dtype=bool)
    for j in range(len(boxes_xyxy)):
        inner = keep & covered_JK[:, j]
        refused = bool((keep & covered_JK[j]).any())
        if policy == "drop_lower":
            refused = refused or bool(inner.any())
        elif keep_top1:
            refused = refused or bool(inner[:1].any())
        if refused:
            continue
        keep &= ~inner
        keep[j] = True
    return keep
