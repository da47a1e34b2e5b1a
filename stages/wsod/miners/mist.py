"""MIST pseudo labels: several instances per class from the top p of the proposals (Ren et al., CVPR 2020).

Keep rule of docs/method.md, section 5.5: a proposal survives only when it overlaps *every* higher-ranked one
by less than the threshold, kept or not, which is stricter than greedy NMS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.core.ops.boxes import box_area, pairwise_containment, pairwise_iou
from stages.wsod.miners.seeds import Seeds, block_rows

INSIDE = 0.85
"""Share of a seed's area from which it lies inside another, as tau_o of pseudo ground truth."""


def candidate_count(num_boxes: int, portion: float = 0.15) -> int:
    """Proposals per class that may become seeds: floor(p N), but one below ten proposals and never none."""
    return 1 if num_boxes < 10 else max(1, int(portion * num_boxes))


def multi_instance(
    scores_NC: Tensor,
    classes_P: Tensor,
    boxes_N4: Tensor,
    portion: float = 0.15,
    keep_iou: float = 0.2,
    floor: float = 0.0,
    whole: float = 0.0,
) -> Seeds:
    """Top `portion` of every positive class, each kept if its IoU with all better ones is below `keep_iou`.

    scores_NC: source branch without its background column; classes_P: positive 0-based classes; boxes_N4: the
    proposals, half-open pixels. Returns P * k
    seeds, class by class in descending score; the suppressed ones are marked invalid, and so are those below
    `floor` times the best score of their class (published: 0). Of 2000 proposals the top 15 % hold the objects, of
    150 mostly background. With a positive `whole`, a seed that lies inside another goes, too, if the other scores at
    least `whole` times as much (published: 0, both stay): a telling part is surer than the object it belongs to.
    """
    count = candidate_count(scores_NC.shape[0], portion)
    scores_PN = scores_NC[:, classes_P].T
    ranked_PN, order_PN = torch.sort(scores_PN, dim=1, descending=True, stable=True)
    ranked_PK, order_PK = ranked_PN[:, :count], order_PN[:, :count]
    suppressed_PK = torch.stack([_suppressed(boxes_N4[order_K], keep_iou) for order_K in order_PK])
    kept_PK = ~suppressed_PK & (ranked_PK >= floor * ranked_PK[:, :1])
    if whole > 0:
        inner_PK = [
            _inside(boxes_N4[order_K], ranked_K, kept_K, whole)
            for order_K, ranked_K, kept_K in zip(order_PK, ranked_PK, kept_PK, strict=True)
        ]
        kept_PK = kept_PK & ~torch.stack(inner_PK)
    return Seeds(
        order_PK.reshape(-1),
        classes_P.repeat_interleave(count),
        ranked_PK.reshape(-1),
        kept_PK.reshape(-1),
    )


def _inside(ranked_K4: Tensor, scores_K: Tensor, kept_K: Tensor, whole: float) -> Tensor:
    """Whether each box lies inside a larger kept one that scores at least `whole` times as much: (K,)."""
    parts = []
    size, area_K = block_rows(ranked_K4), box_area(ranked_K4)
    for start in range(0, len(ranked_K4), size):
        rows = slice(start, start + size)
        inside_RK = pairwise_containment(ranked_K4[rows], ranked_K4) >= INSIDE
        larger_RK = area_K > area_K[rows, None]
        sure_RK = scores_K >= whole * scores_K[rows, None]
        parts.append((inside_RK & larger_RK & sure_RK & kept_K).any(dim=1))
    return torch.cat(parts)


def _suppressed(ranked_K4: Tensor, keep_iou: float) -> Tensor:
    """Whether each box overlaps one before it by `keep_iou` or more: (K,), block by block."""
    parts = []
    size = block_rows(ranked_K4)
    for start in range(0, len(ranked_K4), size):
        rows_R4 = ranked_K4[start : start + size]
        before_K4 = ranked_K4[: start + len(rows_R4)]
        overlaps_RK = pairwise_iou(rows_R4, before_K4) >= keep_iou
        parts.append(torch.tril(overlaps_RK, diagonal=start - 1).any(dim=1))
    return torch.cat(parts)
