"""Which images a page shows: spread evenly, the first ones, or those that went worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.matching import ignored_objects
from stages.core.evaluation.overlap import box_overlap
from stages.core.structures.detections import Detections

Order = Literal["spread", "id", "worst"]
FOUND_IOU = 0.5


def evenly_spaced(ids: Sequence[str], count: int) -> list[str]:
    """``count`` ids spread over a sequence: a sample that nobody picked for its looks."""
    if len(ids) <= count:
        return list(ids)
    return [ids[(2 * i + 1) * len(ids) // (2 * count)] for i in range(count)]


def chosen_images(
    ids: Sequence[str],
    count: int,
    order: Order,
    boxes: Mapping[str, Detections],
    ground_truth: Mapping[str, ImageGroundTruth],
) -> list[str]:
    """Return the ids to show, in the order to show them.

    Args:
        ids: All images, sorted.
        count: How many to show.
        order: ``spread`` evenly through the split, the first by ``id``, or the ``worst``.
        boxes: Image id -> what the last stage found, which decides what is worst.
        ground_truth: Image id -> objects; empty for data sets without.
    """
    if order == "spread":
        return evenly_spaced(ids, count)
    if order == "worst":
        scores = {i: success(boxes.get(i, Detections.empty()), ground_truth.get(i)) for i in ids}
        ids = sorted(ids, key=lambda image_id: scores[image_id])
    return list(ids[:count])


def success(found: Detections, ground_truth: ImageGroundTruth | None) -> float:
    """Return how well an image went, in [0, 1].

    That is F1 of its objects and its boxes of the same class at IoU 0.5, boxes from half the best score on; without
    ground truth the highest score.
    """
    if not len(found):
        return 0.0
    if ground_truth is None:
        return float(found.scores.max())
    shown = found.reaching(0.5 * float(found.scores.max()))
    counted = ~ignored_objects(ground_truth)
    if not counted.any():
        return 1.0
    same = shown.classes[:, None] == ground_truth.classes[None]
    hits = (box_overlap(shown, ground_truth) >= FOUND_IOU) & same
    recall = float(hits[:, counted].any(axis=0).mean())
    precision = float(hits.any(axis=1).mean())
    return 2 * recall * precision / max(recall + precision, float(np.finfo(float).eps))
