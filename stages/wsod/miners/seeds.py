"""Pseudo seeds and the labels they give to proposals, shared by every miner (docs/method.md, sections 5.4, 5.5).

Seeds have a fixed size with a validity mask instead of a data-dependent length, so that mining never waits
for the device. Overlaps are computed of proposals with seeds, block by block: no matrix of proposals by proposals
exists, and memory grows linearly with their number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from stages.core.ops.boxes import pairwise_iou
from stages.core.structures.columns import Column, Columns

BLOCK_ENTRIES = {"cpu": 1 << 15}
"""Overlaps held at a time: what fits a core's cache; elsewhere few, large blocks are faster."""
LARGE_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Seeds(Columns):
    """Mined pseudo objects of one image: S rows, of which only those with `valid_S` count.

    Attributes:
        index_S: int64 row of the proposal chosen as the pseudo object.
        classes_S: int64 0-based class.
        scores_S: score of the source branch, in [0, 1].
        valid_S: bool; the other rows are padding.
    """

    index_S: Annotated[Tensor, Column("int64")]
    classes_S: Annotated[Tensor, Column("int64")]
    scores_S: Annotated[Tensor, Column("float")]
    valid_S: Annotated[Tensor, Column("bool")]


@dataclass(frozen=True, eq=False)
class Targets(Columns):
    """Training targets of the N proposals of one image, or of a batch, for one refinement branch.

    Attributes:
        labels_N: int64; 0 is background, class c is c + 1.
        weights_N: loss weight, in [0, 1]; 0 means ignored.
        matched_N: int64 row of the proposal whose box is the regression target.
    """

    labels_N: Annotated[Tensor, Column("int64")]
    weights_N: Annotated[Tensor, Column("float")]
    matched_N: Annotated[Tensor, Column("int64")]


def by_score(seeds: Seeds) -> Seeds:
    """Reorder seeds by descending score (stable), so that ties of overlap go to the surer class."""
    ranks_S = seeds.scores_S.masked_fill(~seeds.valid_S, -1.0)
    return seeds[torch.argsort(ranks_S, descending=True, stable=True)]


def relative_scores(seeds: Seeds, num_classes: int) -> Seeds:
    """Divide every seed's score by the best valid one of its class.

    Scores of the two streams are small while the detector is young, and so would be every loss weight.
    """
    best_C = seeds.scores_S.new_zeros(num_classes)
    best_C = best_C.scatter_reduce(0, seeds.classes_S, seeds.scores_S * seeds.valid_S, "amax")
    return replace(seeds, scores_S=seeds.scores_S / best_C[seeds.classes_S].clamp(min=1e-12))


def block_rows(columns_S4: Tensor) -> int:
    """Rows of a block whose overlaps with these boxes are held at a time."""
    return max(1, BLOCK_ENTRIES.get(columns_S4.device.type, LARGE_BLOCK) // max(1, len(columns_S4)))


def compact(seeds: Seeds) -> Seeds:
    """Leave the padding out where that costs no waiting: on a CPU. On other devices the seeds as they are.

    So they are, too, where none is valid: one row at least is needed.
    """
    if seeds.valid_S.device.type != "cpu" or not bool(seeds.valid_S.any()):
        return seeds
    return seeds[seeds.valid_S]


def assign_labels(
    boxes_N4: Tensor, seeds: Seeds, fg_iou: float = 0.5, ignore_iou: float | None = None
) -> Targets:
    """Give every proposal the class, score and box of the seed it overlaps most.

    Foreground means IoU >= `fg_iou`. With `ignore_iou` proposals below that overlap get weight 0 (the band
    of the first OICR); without it all background carries its seed's score, as in the published
    configurations. Equal overlaps go to the earlier seed. Where no seed is valid, which scores that are not finite
    lead to, all proposals are background.

    boxes_N4: the proposals, half-open pixels.
    """
    seeds = compact(seeds)
    chosen_S4 = boxes_N4[seeds.index_S]
    best, seed = [], []
    for rows_R4 in boxes_N4.split(block_rows(chosen_S4)):  # type: ignore[no-untyped-call]
        best_R, seed_R = _best_seed(rows_R4, chosen_S4, seeds.valid_S)
        best.append(best_R)
        seed.append(seed_R)
    best_N, seed_N = torch.cat(best), torch.cat(seed)
    labels_N = torch.where(best_N >= fg_iou, seeds.classes_S[seed_N] + 1, 0)
    weights_N = seeds.scores_S[seed_N]
    if ignore_iou is not None:
        weights_N = weights_N * (best_N >= ignore_iou)
    return Targets(labels_N, weights_N, seeds.index_S[seed_N])


def background_targets(boxes_N4: Tensor, first_row: int) -> Targets:
    """Background with full weight for every proposal of a negative: that it shows no object is known, not mined."""
    count = len(boxes_N4)
    rows_N = torch.arange(first_row, first_row + count, device=boxes_N4.device)
    return Targets(torch.zeros_like(rows_N), torch.ones(count, device=boxes_N4.device), rows_N)


def _best_seed(rows_R4: Tensor, seeds_S4: Tensor, valid_S: Tensor) -> tuple[Tensor, Tensor]:
    """Largest overlap of each row with a valid seed, and the first seed that reaches it."""
    overlap_RS = pairwise_iou(rows_R4, seeds_S4).masked_fill(~valid_S, -1.0)
    best_R, seed_R = overlap_RS.max(dim=1)  # of equal ones the first
    return best_R, seed_R
