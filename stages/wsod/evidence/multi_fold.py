"""Multi-fold multiple-instance learning: map evidence corrected by how the boxes of other images look.

Cinbis, Verbeek and Schmid, "Weakly supervised object localization with multi-fold multiple instance learning", PAMI
2017. A linear model of a class learns from the boxes chosen in some images and chooses again in the others: choosing in
the images that it learned from, it would find its own choice confirmed. Here the first choice is that of the maps, the
model a ridge regression of the overlap with the chosen box on frozen features of a box and its surroundings, and both
opinions are multiplied. A part looks like a part: its surroundings are those of no whole object elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.core.ops.boxes import pairwise_iou
from stages.wsod.evidence.class_scores import FLOOR

REGRESSED_IOU = 0.3
"""Overlaps with the chosen box below this count as none."""
NEGATIVES = 20
"""Boxes of an image without the class that the model sees, evenly spaced in its list."""
RIDGE = 1.0
"""Strength of the regularization, multiple of the features' mean variance."""
ROUNDS = 2
"""Rounds of choosing boxes again."""
SHARPNESS = 5.0
"""How much a predicted overlap counts beside map evidence: evidence * exp(SHARPNESS * overlap)."""


@dataclass(frozen=True)
class Bag:
    """One training image.

    Attributes:
        boxes_xyxy: (n, 4) proposals, any pixels.
        features: (n, D) float32 features of the proposals.
        evidence: Positive class -> (n,) map evidence in [0, 1]; all zeros where no map says anything.
    """

    boxes_xyxy: Tensor
    features: Tensor
    evidence: Mapping[int, Tensor]


def correct(bags: Sequence[Bag], folds: int) -> list[dict[int, Tensor]]:
    """Evidence of the proposals of each image for its classes, corrected by the models of the other folds.

    Args:
        bags: The training images.
        folds: Parts that the images are dealt into, 2 or more.

    Returns:
        Per image positive class -> (n,) in [0, 1], 1 at the best. A class with fewer images than two keeps the
        evidence of its maps, and so does an image without evidence when no other image of the class has any.
    """
    corrected = [dict(bag.evidence) for bag in bags]
    for label in sorted({label for bag in bags for label in bag.evidence}):
        current = {i: bag.evidence[label] for i, bag in enumerate(bags) if label in bag.evidence}
        for _ in range(ROUNDS):
            current |= dict(_chosen_again(bags, label, current, folds))
        for i, evidence_N in current.items():
            corrected[i][label] = evidence_N
    return corrected


def _chosen_again(
    bags: Sequence[Bag], label: int, current: Mapping[int, Tensor], folds: int
) -> Iterator[tuple[int, Tensor]]:
    """Corrected evidence of the class in every image that other folds can say something about."""
    for fold in range(folds):
        teachers = {i: own for i, own in current.items() if i % folds != fold and float(own.max()) > 0}
        if not teachers:
            continue
        others = [i for i in range(len(bags)) if i % folds != fold and i not in current]
        weights_D, bias = _fit(bags, teachers, others)
        for i in current:
            if i % folds == fold:
                overlap_N = (bags[i].features.double() @ weights_D + bias).float()
                # Where no map says anything, the floor leaves the choice to the model.
                log_N = bags[i].evidence[label].clamp(min=FLOOR).log() + SHARPNESS * overlap_N
                yield i, (log_N - log_N.max()).exp()


def _fit(bags: Sequence[Bag], teachers: Mapping[int, Tensor], others: Sequence[int]) -> tuple[Tensor, float]:
    """Ridge regression of the overlap with the chosen box: weights (D,) in float64, and the bias.

    Weights of the samples: in images of the class half for boxes on the chosen one, half for the rest; all images of
    the class count as much as all others together do twice.
    """
    features, targets, weights = [], [], []
    for i, evidence_N in teachers.items():
        boxes_N4 = bags[i].boxes_xyxy
        overlap_N = pairwise_iou(boxes_N4, boxes_N4[evidence_N.argmax()][None])[:, 0].double()
        overlap_N = torch.where(overlap_N > REGRESSED_IOU, overlap_N, 0.0)
        positive_N = overlap_N > 0
        count = positive_N.sum()
        own_N = torch.where(positive_N, 0.5 / count, 0.5 / (len(overlap_N) - count).clamp(min=1)).double()
        features.append(bags[i].features)
        targets.append(overlap_N)
        weights.append(own_N / len(teachers))
    for i in others:
        chosen_ND = bags[i].features[:: max(1, len(bags[i].features) // NEGATIVES)]
        zeros = torch.zeros(len(chosen_ND), dtype=torch.float64)
        features.append(chosen_ND)
        targets.append(zeros)
        weights.append(zeros + 0.5 / (len(chosen_ND) * len(others)))
    return _ridge(torch.cat(features).double(), torch.cat(targets), torch.cat(weights))


def _ridge(features_ND: Tensor, targets_N: Tensor, weights_N: Tensor) -> tuple[Tensor, float]:
    weights_N = weights_N / weights_N.sum()
    mean_D, mean = weights_N @ features_ND, weights_N @ targets_N
    centered_ND = features_ND - mean_D
    gram_DD = centered_ND.T @ (centered_ND * weights_N[:, None])
    dim = len(mean_D)
    gram_DD = gram_DD + torch.eye(dim, dtype=torch.float64) * (RIDGE * gram_DD.trace() / dim).clamp(min=1e-12)
    weights_D = torch.linalg.solve(gram_DD, centered_ND.T @ (weights_N * (targets_N - mean)))
    return weights_D, float(mean - mean_D @ weights_D)
