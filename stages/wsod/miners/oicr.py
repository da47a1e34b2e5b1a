"""Online instance classifier refinement: K heads, each taught by the scores of the one before (Tang et al., CVPR 2017).

Miners here: `top1` (the original) and `near_top` (all proposals scoring at least 0.9 of the class maximum,
then NMS; the published WeakSAM configuration). See docs/method.md, section 5.4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.core.ops.boxes import pairwise_iou
from stages.wsod.miners.seeds import Seeds


class RefinementHeads(nn.Module):
    """K linear classifiers over C + 1 columns (column 0 is background), optionally with class-wise box deltas."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        branches: int = 3,
        regression: bool = False,
        init_std: float = 0.01,
    ) -> None:
        """`regression` adds 4 (C + 1) deltas per branch; weights start at N(0, init_std), deltas at a tenth of it."""
        super().__init__()
        columns = num_classes + 1
        self.classifiers = nn.ModuleList(nn.Linear(in_features, columns) for _ in range(branches))
        self.regressors = nn.ModuleList(
            nn.Linear(in_features, 4 * columns) for _ in range(branches if regression else 0)
        )
        for heads, std in ((self.classifiers, init_std), (self.regressors, init_std / 10)):
            for parameter in heads.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=std)
                else:
                    nn.init.zeros_(parameter)

    def forward(self, feats_ND: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, C + 1) of every branch and deltas (N, C + 1, 4) of every branch (empty without regression)."""
        logits = [head(feats_ND) for head in self.classifiers]
        deltas = [head(feats_ND).unflatten(1, (-1, 4)) for head in self.regressors]
        return logits, deltas


def top1(scores_NC: Tensor, classes_P: Tensor) -> Seeds:
    """The best proposal of every positive class; equal scores go to the earlier row.

    scores_NC: source branch without its background column; classes_P: positive 0-based classes.
    """
    scores_NP = scores_NC[:, classes_P]
    best_P, row_P = _first_max(scores_NP)
    return Seeds(row_P, classes_P, best_P, torch.ones_like(classes_P, dtype=torch.bool))


def near_top(
    scores_NC: Tensor,
    classes_P: Tensor,
    boxes_N4: Tensor,
    ratio: float = 0.9,
    nms_iou: float = 0.5,
    class_agnostic: bool = False,
    max_seeds: int = 32,
) -> Seeds:
    """All proposals within `ratio` of their class maximum, after greedy NMS (overlap > `nms_iou` is suppressed).

    boxes_N4: the proposals, half-open pixels.
    class_agnostic: the published variant, where a proposal of one class may delete another class's;
    otherwise each class is pruned by itself. At most `max_seeds` seeds are picked (per class unless
    class-agnostic), highest score first; picking instead of listing keeps the output size fixed, and each
    pick works on all classes at once. Published: no limit, which near the start of a training, where scores are
    nearly equal, makes seeds of most proposals.
    """
    scores_PN = scores_NC[:, classes_P].T
    alive_PN = scores_PN >= ratio * scores_PN.amax(dim=1, keepdim=True)
    rows, num_boxes = scores_PN.shape
    if class_agnostic:
        # One queue over (class, proposal) pairs.
        scores_PN, alive_PN = scores_PN.reshape(1, -1), alive_PN.reshape(1, -1)
    tiles = scores_PN.shape[1] // num_boxes
    queues_Q = torch.arange(scores_PN.shape[0], device=scores_NC.device)
    index, classes, scores, valid = [], [], [], []
    for _ in range(min(max_seeds, scores_PN.shape[1])):
        best_Q, column_Q = _first_max(scores_PN.masked_fill(~alive_PN, float("-inf")).T)
        found_Q = torch.isfinite(best_Q)
        box_Q = column_Q % num_boxes
        index.append(box_Q)
        classes.append(classes_P[column_Q // num_boxes if class_agnostic else queues_Q])
        scores.append(torch.where(found_Q, best_Q, 0.0))
        valid.append(found_Q)
        suppressed_QN = (pairwise_iou(boxes_N4[box_Q], boxes_N4) > nms_iou).repeat(1, tiles)
        alive_PN = alive_PN & ~suppressed_QN
        # A degenerate box overlaps nothing, not even itself: take it out by name.
        alive_PN = alive_PN.index_put((queues_Q, column_Q), torch.zeros_like(found_Q))
        # Reading a flag stalls a GPU, where the remaining picks just come out invalid, but not a CPU.
        if alive_PN.device.type == "cpu" and not bool(alive_PN.any()):
            break
    assert rows > 0, "an image without positive classes must be filtered before mining"
    return Seeds(*(torch.stack(part, dim=1).reshape(-1) for part in (index, classes, scores, valid)))


def _first_max(scores_NP: Tensor) -> tuple[Tensor, Tensor]:
    """Column maxima and the first row that reaches each; where the maximum is nan, which no row equals, the last."""
    best_P = scores_NP.amax(dim=0)
    rows_N1 = torch.arange(scores_NP.shape[0], device=scores_NP.device)[:, None]
    return best_P, torch.where(scores_NP == best_P, rows_N1, scores_NP.shape[0] - 1).amin(dim=0)
