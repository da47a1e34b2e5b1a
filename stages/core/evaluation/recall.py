"""Recall of class-agnostic proposals at IoU .5, .75 and .9, and how it grows with the number of boxes.

Matching is greedy one-to-one within an image: the ground truth-proposal pair of highest IoU is taken, both retire,
and so on (the customary protocol of proposal papers). It is stricter than asking whether *any* proposal covers
an object, since one box cannot serve two. Difficult objects and crowds are left out; the objects of an image
without proposals count as missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.core.errors import SchemaError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.matching import check_images, ignored_objects
from stages.core.evaluation.overlap import FloatArray, box_iou

IOU_THRESHOLDS = (0.5, 0.75, 0.9)
CURVE_COUNTS = (10, 20, 50, 100, 200, 500, 1000)
SIZE_BOUNDS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
"""COCO's size classes, here of the *box* area in square pixels, lower bound included."""


@dataclass(frozen=True)
class ProposalRecall:
    """How well proposals cover the objects of a split.

    Attributes:
        matched_iou: (n,) IoU of each counted object with the proposal it got; 0 for a miss.
        areas: (n,) box areas of these objects, square pixels.
        curve_iou: Number of boxes per image -> ``matched_iou`` with only the first that many.
        boxes_per_image: Mean over all images of the split, with or without proposals.
    """

    matched_iou: FloatArray
    areas: FloatArray
    curve_iou: Mapping[int, FloatArray]
    boxes_per_image: float

    def at(self, iou_threshold: float, size: str | None = None) -> float:
        """Recall in [0, 1], of all objects or one of ``SIZE_BOUNDS``; nan when there is no such object."""
        matched = self.matched_iou
        if size is not None:
            low, high = SIZE_BOUNDS[size]
            matched = matched[(self.areas >= low) & (self.areas < high)]
        return _recall(matched, iou_threshold)

    def curve(self, iou_threshold: float) -> dict[int, float]:
        """Recall against the number of boxes per image."""
        return {count: _recall(matched, iou_threshold) for count, matched in self.curve_iou.items()}


def _recall(matched_iou: FloatArray, iou_threshold: float) -> float:
    return float((matched_iou >= iou_threshold).mean()) if len(matched_iou) else float("nan")


def proposal_recall(
    proposals_xyxy: Mapping[str, FloatArray],
    ground_truth: Mapping[str, ImageGroundTruth],
    curve_counts: Sequence[int] = CURVE_COUNTS,
) -> ProposalRecall:
    """Recall of proposals, image id -> ``(n, 4)`` boxes in the order in which the curve takes them.

    Raises:
        SchemaError: proposals of an image the ground truth does not hold, or not finite.
    """
    check_images((name for name, boxes in proposals_xyxy.items() if len(boxes)), ground_truth, "proposals")
    none = np.zeros((0, 4))
    matched: list[FloatArray] = [np.zeros(0)]
    areas: list[FloatArray] = [np.zeros(0)]
    curve: dict[int, list[FloatArray]] = {count: [np.zeros(0)] for count in curve_counts}
    total = 0
    for image_id in sorted(ground_truth):
        boxes = np.asarray(proposals_xyxy.get(image_id, none), dtype=np.float64).reshape(-1, 4)
        if not np.isfinite(boxes).all():
            raise SchemaError(f"image {image_id}: a proposal is not a finite number")
        true = ground_truth[image_id]
        objects = true.boxes_xyxy[~ignored_objects(true)]
        total += len(boxes)
        iou = box_iou(objects, boxes)
        matched.append(one_to_one(iou))
        areas.append((objects[:, 2] - objects[:, 0]) * (objects[:, 3] - objects[:, 1]))
        for count, parts in curve.items():
            parts.append(matched[-1] if count >= len(boxes) else one_to_one(iou[:, :count]))
    return ProposalRecall(
        matched_iou=np.concatenate(matched),
        areas=np.concatenate(areas),
        curve_iou={count: np.concatenate(parts) for count, parts in curve.items()},
        boxes_per_image=total / len(ground_truth) if ground_truth else float("nan"),
    )


def one_to_one(iou: FloatArray) -> FloatArray:
    """IoU ``(m,)`` each object gets when the best pair left of ``(m, n)`` is taken, again and again.

    Objects left over when the proposals run out, or overlapping nothing, get 0. Ties go to the first
    object, then to the first proposal.
    """
    matched = np.zeros(iou.shape[0])
    left = iou.copy()
    for _ in range(min(iou.shape)):
        i, j = np.unravel_index(int(left.argmax()), left.shape)
        if left[i, j] <= 0:
            break
        matched[i] = left[i, j]
        left[i, :] = -1.0
        left[:, j] = -1.0
    return matched
