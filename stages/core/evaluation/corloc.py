"""Correct localisation (CorLoc) of weakly supervised detectors, on the split they were trained on.

Of the images that hold a class, the fraction whose highest-scoring detection of that class overlaps a true
object of it with IoU >= .5. Deselaers, Alexe, Ferrari, "Weakly supervised localization and learning with
generic knowledge", IJCV 2012. Difficult objects and crowds neither make an image positive nor count as hits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.matching import IntArray, check_detections, class_mean, ignored_objects
from stages.core.evaluation.overlap import FloatArray, box_iou
from stages.core.structures.detections import Detections


@dataclass(frozen=True)
class CorLoc:
    """CorLoc per class.

    Attributes:
        per_class: (C,) in [0, 1]; nan for classes without a positive image.
        positive_images: (C,) images that hold the class.
    """

    per_class: FloatArray
    positive_images: IntArray

    @property
    def mean(self) -> float:
        """Mean over classes with a positive image; nan when there is none."""
        return class_mean(self.per_class)


def corloc(
    detections: Mapping[str, Detections],
    ground_truth: Mapping[str, ImageGroundTruth],
    num_classes: int,
    iou_threshold: float = 0.5,
) -> CorLoc:
    """CorLoc of detections; a positive image without a detection of the class is a miss.

    Of equal scores the first in the list is taken.

    Raises:
        SchemaError: unknown images or classes, or numbers that are not finite.
    """
    check_detections(detections, ground_truth, num_classes)
    hits, images = np.zeros(num_classes, dtype=np.int64), np.zeros(num_classes, dtype=np.int64)
    for image_id in sorted(ground_truth):
        true = ground_truth[image_id]
        counted = ~ignored_objects(true)
        found = detections.get(image_id, Detections.empty())
        for label in np.unique(true.classes[counted]).tolist():
            images[label] += 1
            own = found[found.classes == label].best_first()[:1]
            if not len(own):
                continue
            objects = true.boxes_xyxy[counted & (true.classes == label)]
            hits[label] += bool(box_iou(own.boxes_xyxy, objects).max() >= iou_threshold)
    per_class = np.where(images > 0, hits / np.maximum(images, 1), np.nan)
    return CorLoc(per_class, images)
