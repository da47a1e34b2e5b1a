"""Multiple-instance pooling over ragged bags: a batch of images whose proposals are concatenated row-wise.

Every image is one bag; `bag_N` names the bag of each row. WSDDN (Bilen and Vedaldi, CVPR 2016), equations 1-3
(docs/method.md, section 5.3): softmax over classes times softmax over the proposals of an image, summed over them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def bag_index(counts: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Bag of every row when bag b holds `counts[b]` consecutive rows: (sum(counts),) int64."""
    # Filled in place: a copy from the host would wait for all that a GPU has to do.
    rows = [torch.full((count,), bag, dtype=torch.int64, device=device) for bag, count in enumerate(counts)]
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64, device=device)


def bag_softmax(logits_NC: Tensor, bag_N: Tensor, num_bags: int) -> Tensor:
    """Softmax over the rows of each bag, column by column: (N, C), each column of a bag sums to 1."""
    index_NC = bag_N[:, None].expand_as(logits_NC)
    floor_BC = logits_NC.new_full((num_bags, logits_NC.shape[1]), float("-inf"))
    # The maximum only keeps exp() finite; it cancels, so no gradient is needed through it.
    peak_BC = floor_BC.scatter_reduce(0, index_NC, logits_NC.detach(), "amax")
    exp_NC = torch.exp(logits_NC - peak_BC[bag_N])
    return exp_NC / bag_sum(exp_NC, bag_N, num_bags)[bag_N]


def bag_sum(values_NC: Tensor, bag_N: Tensor, num_bags: int) -> Tensor:
    """Sum of the rows of each bag: (num_bags, C)."""
    zeros_BC = values_NC.new_zeros((num_bags, values_NC.shape[1]))
    return zeros_BC.index_add(0, bag_N, values_NC)


def two_stream_scores(cls_logits_NC: Tensor, det_logits_NC: Tensor, bag_N: Tensor, num_bags: int) -> Tensor:
    """WSDDN scores: softmax over classes times softmax over the proposals of each image, (N, C) in [0, 1]."""
    return torch.softmax(cls_logits_NC, dim=1) * bag_softmax(det_logits_NC, bag_N, num_bags)


def image_scores(scores_NC: Tensor, bag_N: Tensor, num_bags: int) -> Tensor:
    """WSDDN image-level scores, the sum over proposals: (B, C), in [0, 1] up to rounding."""
    return bag_sum(scores_NC, bag_N, num_bags)
