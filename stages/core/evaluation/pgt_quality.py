"""How right and how complete pseudo ground truth is: precision and recall of its boxes (and masks).

A pseudo box is right when it would be a VOC true positive: it overlaps an object of its class with IoU at or
above the threshold and is the best-scored to do so. Pseudo boxes on difficult objects or crowds count neither
for nor against. Figures are over all boxes of a class, and pooled over classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.matching import IntArray, Overlap, match_by_class
from stages.core.evaluation.overlap import FloatArray, box_overlap
from stages.core.structures.detections import Detections


@dataclass(frozen=True)
class PgtQuality:
    """Counts at one IoU threshold.

    Attributes:
        right: (C,) pseudo boxes that are right, which is also the number of objects found.
        wrong: (C,) pseudo boxes on nothing of their class, or second on an object.
        positives: (C,) objects to be found.
    """

    right: IntArray
    wrong: IntArray
    positives: IntArray

    @property
    def precision(self) -> float:
        """right / (right + wrong) over all classes; nan without pseudo boxes."""
        return float(_ratio(self.right.sum(), (self.right + self.wrong).sum()))

    @property
    def recall(self) -> float:
        """right / positives over all classes; nan without objects."""
        return float(_ratio(self.right.sum(), self.positives.sum()))

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; nan without boxes and objects."""
        return float(_ratio(2 * self.right.sum(), (self.right + self.wrong + self.positives).sum()))

    @property
    def class_precision(self) -> FloatArray:
        """(C,); nan for classes without pseudo boxes."""
        return _ratio(self.right, self.right + self.wrong)

    @property
    def class_recall(self) -> FloatArray:
        """(C,); nan for classes without objects."""
        return _ratio(self.right, self.positives)


def _ratio(part: IntArray, whole: IntArray) -> FloatArray:
    part, whole = np.asarray(part), np.asarray(whole)
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def pgt_quality(
    pseudo: Mapping[str, Detections],
    ground_truth: Mapping[str, ImageGroundTruth],
    num_classes: int,
    iou_threshold: float = 0.5,
    overlap: Overlap = box_overlap,
) -> PgtQuality:
    """Compare pseudo boxes (image id -> boxes) with the objects of every image of a split.

    Raises:
        SchemaError: unknown images or classes, or numbers that are not finite.
    """
    matches = match_by_class(pseudo, ground_truth, num_classes, overlap)
    outcomes = [match.outcomes(iou_threshold) for match in matches]
    return PgtQuality(
        right=np.array([right.sum() for right, _ in outcomes], dtype=np.int64),
        wrong=np.array([wrong.sum() for _, wrong in outcomes], dtype=np.int64),
        positives=np.array([match.positives for match in matches], dtype=np.int64),
    )
