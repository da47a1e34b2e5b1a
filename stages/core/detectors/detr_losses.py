"""Set losses of detection transformers whose matched queries can be weighted one by one.

DETR (Carion et al., 2020) matches queries to targets one to one (Hungarian); the others learn to be
background. Deformable DETR uses the focal loss for classes, RT-DETR the varifocal loss (Zhang et al., 2021):
a matched query learns the IoU of its box. What is added to the library's losses is the hook of RoI drop,
which sees the raw losses of the matched queries of every decoder layer; losses of the encoder's proposals
and of denoising queries are never weighted (method 2, section 7.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from stages.core.detectors.two_stage.roi_heads import RoiWeights, trusted_rows
from stages.core.runtime import processes

Matches = Sequence[tuple[Tensor, Tensor]]
"""Per image: indices of queries and of the targets they are matched to, both of the same length."""

SetTargets = Sequence[dict[str, Tensor]]
"""Per image: `class_labels` [T], 0-based, `boxes` [T, 4], relative cx, cy, w, h, and perhaps `trusted`, a flag."""

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class LayerOutput:
    """What one decoder layer says: `logits_BQC`, and `boxes_BQ4` as relative cx, cy, w, h."""

    logits_BQC: Tensor
    boxes_BQ4: Tensor


@dataclass(frozen=True)
class SetOutput:
    """All that is supervised in one step.

    Attributes:
        layers: decoder layers, the last one last; matched, and seen by RoI drop.
        proposals: the encoder's chosen proposals, matched likewise, or None.
        denoising: decoder layers' answers to the noisy targets.
        restored: which denoising query stands for which target.
        groups: how often every target occurs among the denoising queries.
    """

    layers: Sequence[LayerOutput]
    proposals: LayerOutput | None = None
    denoising: Sequence[LayerOutput] = ()
    restored: Matches = ()
    groups: int = 1


@dataclass(frozen=True)
class SetCosts:
    """Weights of classification, L1 and GIoU in the loss and in the matching; focal parameters.

    Attributes:
        class_loss: `focal` or `varifocal`.
        alpha, gamma: of the class loss; the matching has the focal ones of DETR (0.25, 2).
    """

    class_loss: Literal["focal", "varifocal"]
    alpha: float
    gamma: float = 2.0
    loss: tuple[float, float, float] = (1.0, 5.0, 2.0)
    matching: tuple[float, float, float] = (2.0, 5.0, 2.0)
    matching_alpha: float = field(default=0.25)


def set_losses(
    output: SetOutput, targets: SetTargets, costs: SetCosts, weights: RoiWeights | None = None
) -> Losses:
    """Losses of a batch, summed over layers, in float32 whatever the precision of the outputs.

    Args:
        output: of the network.
        targets: pseudo boxes.
        costs: how they are weighted.
        weights: RoI drop, called once per decoder layer (losses of early layers are larger), or None.

    Returns:
        `loss_class`, `loss_box` and `loss_giou` of the decoder; `loss_proposals`, `loss_denoising` where there
        are any. NaN in place of all of them when an output is not finite: such outputs cannot be matched.
    """
    with torch.autocast(output.layers[-1].logits_BQC.device.type, enabled=False):
        # Normalised by the number of targets, a mean over processes; the queries that are dropped still count.
        own = torch.tensor([float(sum(len(target["class_labels"]) for target in targets))])
        count = max(float(processes.total(own)) / processes.world(), 1.0)
        matched = [match_queries(layer, targets, costs) for layer in output.layers]
        chosen = None if output.proposals is None else match_queries(output.proposals, targets, costs)
        if None in matched or (output.proposals is not None and chosen is None):
            return _not_a_number(output, weights)
        losses = _summed(
            [
                layer_losses(layer, targets, matches, costs, count, weights)
                for layer, matches in zip(output.layers, matched, strict=True)
                if matches is not None
            ]
        )
        if output.proposals is not None and chosen is not None:
            losses["loss_proposals"] = _total(layer_losses(output.proposals, targets, chosen, costs, count))
        if output.denoising:
            each = [
                _total(layer_losses(layer, targets, output.restored, costs, count * output.groups))
                for layer in output.denoising
            ]
            losses["loss_denoising"] = torch.stack(each).sum()
        return losses


def layer_losses(
    layer: LayerOutput,
    targets: SetTargets,
    matches: Matches,
    costs: SetCosts,
    count: float,
    weights: RoiWeights | None = None,
) -> Losses:
    """Losses of one layer under a given matching.

    For RoI drop a matched query has, as its classification loss, the cross-entropy of its target's class in
    nats, -log p: the focal loss is a falling function of p alone, so that a threshold on one is a threshold
    on the other, and the varifocal loss, weighted by the IoU, would be small just where the box is wrong. Its
    regression loss is 5 L1 + 2 (1 - GIoU), as it enters the total. A dropped query loses the losses of all
    classes, and of its box.
    """
    logits_BQC, boxes_BQ4 = layer.logits_BQC.float(), layer.boxes_BQ4.float()
    batch_M, query_M = _positions(matches, logits_BQC.device)
    labels_M = torch.cat([target["class_labels"][j] for target, (_, j) in _pairs(targets, matches)])
    wanted_M4 = torch.cat([target["boxes"][j] for target, (_, j) in _pairs(targets, matches)]).float()
    found_M4 = boxes_BQ4[batch_M, query_M]
    l1_M = (found_M4 - wanted_M4).abs().sum(dim=1)
    corners_M4, wanted_corners_M4 = _corners(found_M4), _corners(wanted_M4)
    giou_M = generalized_box_iou_loss(corners_M4, wanted_corners_M4)
    goal_BQC, weight_BQC = _goals(logits_BQC, (batch_M, query_M, labels_M), costs)
    if costs.class_loss == "varifocal":
        goal_BQC[batch_M, query_M, labels_M] = _iou(corners_M4, wanted_corners_M4).detach()
        weight_BQC = weight_BQC + goal_BQC
        class_BQ = F.binary_cross_entropy_with_logits(logits_BQC, goal_BQC, weight_BQC, reduction="none").sum(
            2
        )
    else:
        class_BQ = sigmoid_focal_loss(logits_BQC, goal_BQC, costs.alpha, costs.gamma).sum(2)
    class_weight, l1_weight, giou_weight = costs.loss
    box_M, overlap_M = l1_weight * l1_M, giou_weight * giou_M
    if weights is not None:
        surprise_M = F.softplus(-logits_BQC[batch_M, query_M, labels_M])
        everyone_M = torch.ones_like(labels_M, dtype=torch.bool)
        keep_class_M, keep_box_M = weights(surprise_M.detach(), (box_M + overlap_M).detach(), everyone_M)
        trusted_M = torch.cat([trusted_rows(target, len(j)) for target, (_, j) in _pairs(targets, matches)])
        keep_class_M = torch.where(trusted_M, 1.0, keep_class_M)
        keep_box_M = torch.where(trusted_M, 1.0, keep_box_M)
        keep_BQ = torch.ones_like(class_BQ)
        keep_BQ[batch_M, query_M] = keep_class_M
        class_BQ, box_M, overlap_M = class_BQ * keep_BQ, box_M * keep_box_M, overlap_M * keep_box_M
    return {
        "loss_class": class_weight * class_BQ.sum() / count,
        "loss_box": box_M.sum() / count,
        "loss_giou": overlap_M.sum() / count,
    }


@torch.no_grad()
def match_queries(layer: LayerOutput, targets: SetTargets, costs: SetCosts) -> Matches | None:
    """One-to-one matching of least total cost (focal class cost, L1, GIoU), or None for outputs not finite."""
    from scipy.optimize import linear_sum_assignment

    logits_BQC, boxes_BQ4 = layer.logits_BQC.float(), layer.boxes_BQ4.float()
    labels_T = torch.cat([target["class_labels"] for target in targets])
    wanted_T4 = torch.cat([target["boxes"] for target in targets]).float()
    batch, queries, classes = logits_BQC.shape
    class_weight, l1_weight, giou_weight = costs.matching
    logits_RC, boxes_R4 = logits_BQC.reshape(-1, classes), boxes_BQ4.reshape(-1, 4)
    every = torch.ones_like(logits_RC)
    alpha, gamma = costs.matching_alpha, costs.gamma
    as_class_RC = sigmoid_focal_loss(logits_RC, every, alpha, gamma)
    as_background_RC = sigmoid_focal_loss(logits_RC, every * 0, alpha, gamma)
    cost_RT = class_weight * (as_class_RC - as_background_RC)[:, labels_T]
    cost_RT += l1_weight * torch.cdist(boxes_R4, wanted_T4, p=1)
    cost_RT -= giou_weight * _pairwise_giou(boxes_R4, wanted_T4)
    cost_BQT = cost_RT.reshape(batch, queries, -1).cpu()  # one transfer a layer: the matching is on the CPU
    if not (torch.isfinite(cost_BQT).all() and bool(torch.isfinite(logits_BQC).all())):
        return None
    matches: list[tuple[Tensor, Tensor]] = []
    sizes = [len(target["class_labels"]) for target in targets]
    for image, cost_QT in enumerate(cost_BQT.split(sizes, dim=2)):
        rows, columns = linear_sum_assignment(cost_QT[image].numpy())
        matches.append((torch.from_numpy(rows), torch.from_numpy(columns)))
    return matches


def _goals(
    logits_BQC: Tensor, place: tuple[Tensor, Tensor, Tensor], costs: SetCosts
) -> tuple[Tensor, Tensor]:
    """One-hot targets, and the varifocal weight of everything else: alpha p^gamma."""
    goal_BQC = torch.zeros_like(logits_BQC)
    goal_BQC[place] = 1.0
    return goal_BQC, costs.alpha * logits_BQC.detach().sigmoid().pow(costs.gamma) * (1 - goal_BQC)


def _pairs(targets: SetTargets, matches: Matches) -> zip[tuple[dict[str, Tensor], tuple[Tensor, Tensor]]]:
    return zip(targets, matches, strict=True)


def _positions(matches: Matches, device: torch.device) -> tuple[Tensor, Tensor]:
    batch = [torch.full_like(queries, image) for image, (queries, _) in enumerate(matches)]
    return torch.cat(batch).to(device), torch.cat([queries for queries, _ in matches]).to(device)


def _corners(boxes_N4: Tensor) -> Tensor:
    corners: Tensor = box_convert(boxes_N4, "cxcywh", "xyxy")
    return corners


def _iou(one_N4: Tensor, other_N4: Tensor) -> Tensor:
    """IoU of boxes in corner form, row by row; 0 where both are empty."""
    sides_N2 = (
        torch.minimum(one_N4[:, 2:], other_N4[:, 2:]) - torch.maximum(one_N4[:, :2], other_N4[:, :2])
    ).clamp(0)
    shared_N = sides_N2.prod(dim=1)
    areas_N = (one_N4[:, 2:] - one_N4[:, :2]).prod(dim=1) + (other_N4[:, 2:] - other_N4[:, :2]).prod(dim=1)
    return shared_N / (areas_N - shared_N).clamp_min(torch.finfo(torch.float32).tiny)


def _pairwise_giou(boxes_R4: Tensor, wanted_T4: Tensor) -> Tensor:
    from torchvision.ops import generalized_box_iou

    giou_RT: Tensor = generalized_box_iou(_corners(boxes_R4), _corners(wanted_T4))
    return giou_RT


def _not_a_number(output: SetOutput, weights: RoiWeights | None) -> Losses:
    """A loss that stops the training, where the outputs cannot be matched."""
    first = output.layers[0].logits_BQC
    if weights is not None:
        nothing = first.new_zeros(0, dtype=torch.float32)
        for _ in output.layers:  # the rule may wait for the queries of other processes
            weights(nothing, nothing, nothing.bool())
    return {"loss_class": first.float().sum() * float("nan")}


def _summed(each: Sequence[Losses]) -> Losses:
    return {name: torch.stack([losses[name] for losses in each]).sum() for name in each[0]}


def _total(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()
