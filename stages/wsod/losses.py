"""Losses of weakly supervised detection, each a pure function (docs/method.md, section 5.6).

Refinement losses divide by the number of proposals of the image, then by the number of images, so that a
batch equals the mean of its images.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["sum", "mean"]


def image_bce(
    image_scores_BC: Tensor, tags_BC: Tensor, reduction: Reduction = "sum", clamp: float = 1e-8
) -> Tensor:
    """Multi-label cross-entropy of summed WSDDN scores: over classes `sum` (OICR) or `mean` (MIST), mean over images.

    Scores are clamped to [clamp, 1 - clamp]: sums of softmax products may leave [0, 1] by rounding. With scores that
    are not finite the loss is nan.
    """
    scores_BC = image_scores_BC.float()
    # Torch's BCE refuses nan, on a GPU with an assertion that ends the process.
    finite_BC = torch.isfinite(scores_BC)
    safe_BC = scores_BC.masked_fill(~finite_BC, 0.5)
    # In float32 1 - 1e-8 is 1: BCE then limits the logarithm at -100 by itself.
    bce_BC = F.binary_cross_entropy(safe_BC.clamp(clamp, 1.0 - clamp), tags_BC.float(), reduction="none")
    bce_BC = bce_BC.masked_fill(~finite_BC, float("nan"))
    per_image_B = bce_BC.sum(dim=1) if reduction == "sum" else bce_BC.mean(dim=1)
    return per_image_B.mean()


def row_shares(counts_B: Tensor, bag_N: Tensor) -> Tensor:
    """Share of each proposal in a mean over images of means over proposals: 1 / (B n_b), (N,)."""
    return 1.0 / (counts_B.to(torch.float32)[bag_N] * counts_B.shape[0])


def refinement_loss(logits_NK: Tensor, labels_N: Tensor, weights_N: Tensor, shares_N: Tensor) -> Tensor:
    """Weighted cross-entropy of one refinement branch; labels 0 = background."""
    entropy_N = F.cross_entropy(logits_NK.float(), labels_N, reduction="none")
    return (entropy_N * weights_N * shares_N).sum()


def regression_loss(
    deltas_NK4: Tensor, labels_N: Tensor, target_deltas_N4: Tensor, weights_N: Tensor, shares_N: Tensor
) -> Tensor:
    """Weighted smooth-L1 (beta 1, summed over the four deltas) of the label's own column; background counts 0."""
    rows_N = torch.arange(labels_N.shape[0], device=labels_N.device)
    own_N4 = deltas_NK4[rows_N, labels_N].float()
    distance_N = F.smooth_l1_loss(own_N4, target_deltas_N4, reduction="none", beta=1.0).sum(dim=1)
    return (distance_N * weights_N * shares_N * (labels_N > 0)).sum()
