"""From a batch's scores to its losses: image loss, then K rounds of mining, labelling and refinement.

docs/method.md, sections 5.3 to 5.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.core.ops.boxes import encode_deltas
from stages.core.ops.mil import bag_index, bag_sum, image_scores, two_stream_scores
from stages.wsod.config import WsodConfig
from stages.wsod.evidence.class_scores import FLOOR, factors
from stages.wsod.losses import image_bce, refinement_loss, regression_loss, row_shares
from stages.wsod.miners.mist import multi_instance
from stages.wsod.miners.oicr import near_top, top1
from stages.wsod.miners.seeds import (
    Seeds,
    Targets,
    assign_labels,
    background_targets,
    by_score,
    relative_scores,
)
from stages.wsod.model.detector import ProposalOutputs

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Published scale of regression targets."""


@dataclass(frozen=True)
class Bags:
    """Which rows of a batch belong to which image, and what is known of each image."""

    boxes_xyxy: Sequence[Tensor]
    """(n_b, 4) input pixels per image; none empty."""
    tags: Sequence[Tensor]
    """int64 (p_b,) 0-based positive classes per image, each once, on the device of the boxes; empty for a negative."""
    evidence: Sequence[Tensor] = ()
    """(n_b, p_b) map evidence of the proposals for those classes, in [0, 1], a column of zeros where no map is; empty
    where the settings do not ask for it."""

    @property
    def counts(self) -> list[int]:
        """Proposals per image."""
        return [len(boxes) for boxes in self.boxes_xyxy]

    @property
    def evidence_or_zeros(self) -> Sequence[Tensor]:
        """Map evidence of every image."""
        pairs = zip(self.boxes_xyxy, self.tags, strict=True)
        return self.evidence or [boxes.new_zeros(len(boxes), len(tags)) for boxes, tags in pairs]


def wsod_losses(
    outputs: ProposalOutputs, bags: Bags, config: WsodConfig, progress: float = 1.0
) -> dict[str, Tensor]:
    """Named losses of a batch; their sum is minimised. Names starting with `_` are only for the log.

    progress: fraction of the training that is done, for `evidence_seeding`.

    Nothing here is copied from the host to a GPU, which would wait for all it has to do.
    """
    device = outputs.cls_logits_NC.device
    num_images = len(bags.counts)
    bag_N = bag_index(bags.counts, device)
    det_logits_NC = outputs.det_logits_NC
    if config.evidence_prior > 0:
        det_logits_NC = det_logits_NC + _log_prior(bags, det_logits_NC, config)
    scores_NC = two_stream_scores(outputs.cls_logits_NC, det_logits_NC, bag_N, num_images)
    tags_BC = _tag_matrix(bags.tags, scores_NC, config.background_class)
    losses = {"image": image_bce(image_scores(scores_NC, bag_N, num_images), tags_BC, config.bce_reduction)}
    if outputs.dropped is not None:
        losses["_dropped"] = outputs.dropped
    if not outputs.refine_logits:
        return losses
    shares_N = row_shares(bag_sum(torch.ones_like(bag_N)[:, None], bag_N, num_images)[:, 0], bag_N)
    source_NC = scores_NC.detach()[:, int(config.background_class) :]
    for k, logits_NK in enumerate(outputs.refine_logits):
        seeding = k == 0 and progress < config.evidence_seeding
        targets = _batch_targets(source_NC, bags, config, seeding)
        weights_N = targets.weights_N * config.refine_loss_weights[k]
        losses[f"refine{k + 1}"] = refinement_loss(logits_NK, targets.labels_N, weights_N, shares_N)
        if outputs.deltas:
            boxes_N4 = torch.cat(list(bags.boxes_xyxy))
            deltas_N4 = encode_deltas(boxes_N4, boxes_N4[targets.matched_N], DELTA_WEIGHTS)
            losses[f"box{k + 1}"] = regression_loss(
                outputs.deltas[k], targets.labels_N, deltas_N4, weights_N, shares_N
            )
        losses[f"_foreground{k + 1}"] = (targets.labels_N > 0).float().mean()
        source_NC = torch.softmax(logits_NK.detach().float(), dim=1)[:, 1:]
    return losses


def mine(scores_NC: Tensor, classes_P: Tensor, boxes_N4: Tensor, config: WsodConfig) -> Seeds:
    """Seeds of one image by the configured miner; boxes_N4: its proposals."""
    if config.method == "mist":
        seeds = multi_instance(
            scores_NC,
            classes_P,
            boxes_N4,
            config.mist.top_fraction,
            config.mist.seed_nms_thresh,
            config.mist.min_score_ratio,
            config.mist.container_score_ratio,
        )
    elif config.oicr.miner == "top1":
        seeds = top1(scores_NC, classes_P)
    else:
        seeds = near_top(
            scores_NC,
            classes_P,
            boxes_N4,
            config.oicr.min_score_ratio,
            config.oicr.seed_nms_thresh,
            config.oicr.class_agnostic_nms,
            config.oicr.max_seeds,
        )
    if config.tie_break_by_score:
        seeds = by_score(seeds)
    return relative_scores(seeds, scores_NC.shape[1]) if config.seed_weights == "relative" else seeds


def map_seeds(scores_NC: Tensor, classes_P: Tensor, evidence_NP: Tensor) -> Seeds:
    """The proposal of best map evidence of each class; for a class without evidence, of best score.

    Args:
        scores_NC: Source branch without its background column.
        classes_P: Positive 0-based classes.
        evidence_NP: Map evidence of the proposals for these classes, in [0, 1].

    Every seed has score 1: a map does not know how sure it is.
    """
    given_P = evidence_NP.amax(dim=0) > 0
    ranks_NC = scores_NC.index_copy(1, classes_P, torch.where(given_P, evidence_NP, scores_NC[:, classes_P]))
    seeds = top1(ranks_NC, classes_P)
    return replace(seeds, scores_S=torch.ones_like(seeds.scores_S))


def _log_prior(bags: Bags, det_logits_NC: Tensor, config: WsodConfig) -> Tensor:
    """Weighted logarithm of the evidence in the columns of each image's tags, 0 elsewhere; (N, columns)."""
    prior_NC = torch.zeros_like(det_logits_NC)
    parts = torch.split(prior_NC, bags.counts)
    for own_NC, classes_P, evidence_NP in zip(parts, bags.tags, bags.evidence_or_zeros, strict=True):
        log_NP = config.evidence_prior * evidence_NP.clamp(min=FLOOR).log()
        own_NC.index_copy_(1, classes_P + int(config.background_class), log_NP)
    return prior_NC


def _batch_targets(source_NC: Tensor, bags: Bags, config: WsodConfig, seeding: bool) -> Targets:
    """Mine and label image by image; rows of `matched_N` point into the whole batch.

    seeding: take the seeds from the maps.
    """
    parts, start = [], 0
    known = zip(bags.boxes_xyxy, bags.tags, bags.evidence_or_zeros, strict=True)
    for boxes_N4, classes_P, evidence_NP in known:
        count = len(boxes_N4)
        if not len(classes_P):
            parts.append(background_targets(boxes_N4, start))
            start += count
            continue
        scores_NC = source_NC[start : start + count]
        if config.evidence_mining_power > 0:
            weighed_NP = scores_NC[:, classes_P] * factors(evidence_NP, config.evidence_mining_power)
            scores_NC = scores_NC.index_copy(1, classes_P, weighed_NP)
        if seeding:
            seeds = map_seeds(scores_NC, classes_P, evidence_NP)
        else:
            seeds = mine(scores_NC, classes_P, boxes_N4, config)
        own = assign_labels(boxes_N4, seeds, config.fg_iou_thresh, config.ignore_iou_thresh or None)
        parts.append(replace(own, matched_N=own.matched_N + start))
        start += count
    return Targets.cat(parts)


def _tag_matrix(tags: Sequence[Tensor], scores_NC: Tensor, background: bool) -> Tensor:
    """Multi-hot tags (B, C); a background column is never present in an image's tags."""
    matrix_BC = torch.zeros(len(tags), scores_NC.shape[1], device=scores_NC.device)
    for row_C, classes_P in zip(matrix_BC, tags, strict=True):
        row_C.index_fill_(0, classes_P + int(background), 1.0)
    return matrix_BC
