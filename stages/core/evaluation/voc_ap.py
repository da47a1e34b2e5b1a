"""PASCAL VOC average precision at one IoU: 11-point (VOC 2007) and area under the curve (VOC 2010 on).

Boxes are half-open, so IoU equals the devkit's "+1" arithmetic on its inclusive integer boxes, and a
detection is right at IoU >= threshold as in the devkit. Difficult objects (and COCO crowds) are ignored,
duplicates are false positives, classes without a counted object are nan and left out of the mean.
Everingham et al., IJCV 2010, section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.matching import ClassMatches, IntArray, class_mean, match_by_class
from stages.core.evaluation.overlap import BoolArray, FloatArray
from stages.core.structures.detections import Detections


@dataclass(frozen=True)
class VocAp:
    """Average precision per class at one IoU threshold.

    Attributes:
        iou_threshold: in (0, 1].
        eleven_point: (C,) in [0, 1]; nan for classes without a counted object.
        area: (C,) likewise.
        positives: (C,) counted objects.
    """

    iou_threshold: float
    eleven_point: FloatArray
    area: FloatArray
    positives: IntArray

    @property
    def mean_eleven_point(self) -> float:
        """Mean over classes with ground truth; nan when there is none."""
        return class_mean(self.eleven_point)

    @property
    def mean_area(self) -> float:
        """Mean over classes with ground truth; nan when there is none."""
        return class_mean(self.area)


def voc_ap(
    detections: Mapping[str, Detections],
    ground_truth: Mapping[str, ImageGroundTruth],
    num_classes: int,
    iou_threshold: float = 0.5,
) -> VocAp:
    """VOC box AP of detections (image id -> detections) against the ground truth of every image of a split.

    Raises:
        SchemaError: unknown images or classes, or numbers that are not finite.
    """
    return ap_of_matches(match_by_class(detections, ground_truth, num_classes), iou_threshold)


def ap_of_matches(matches: Sequence[ClassMatches], iou_threshold: float) -> VocAp:
    """Average precision of detections already matched, one :class:`ClassMatches` per class."""
    eleven, area = np.full(len(matches), np.nan), np.full(len(matches), np.nan)
    for label, match in enumerate(matches):
        if match.positives:
            right, wrong = match.outcomes(iou_threshold)
            eleven[label] = eleven_point_ap(right, wrong, match.positives)
            area[label] = area_ap(right, wrong, match.positives)
    positives = np.array([match.positives for match in matches], dtype=np.int64)
    return VocAp(iou_threshold, eleven, area, positives)


def _curve(right: BoolArray, wrong: BoolArray) -> tuple[IntArray, FloatArray]:
    """True positives so far and precision so far, at each detection that is not ignored."""
    counted = right | wrong
    found = np.cumsum(right[counted], dtype=np.int64)
    return found, found / np.arange(1, len(found) + 1)


def eleven_point_ap(right: BoolArray, wrong: BoolArray, positives: int) -> float:
    """Mean over recalls 0, .1, ..., 1 of the best precision at that recall or beyond.

    Args:
        right: (n,) true positives by descending score.
        wrong: (n,) false positives; rows that are neither are ignored.
        positives: objects to be found, > 0.
    """
    found, precision = _curve(right, wrong)
    # In integers, found / positives >= k / 10 has no rounding (0.1 * 3 > 0.3 in floating point).
    reached = (precision[10 * found >= k * positives] for k in range(11))
    return float(sum(float(p.max()) if len(p) else 0.0 for p in reached) / 11)


def area_ap(right: BoolArray, wrong: BoolArray, positives: int) -> float:
    """Area under the precision-recall curve made monotone from the right; arguments as for 11-point."""
    found, precision = _curve(right, wrong)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(found, prepend=0)
    return float((envelope * steps).sum() / positives)
