"""Instance mask AP at IoU .25, .5, .7 and .75, in both conventions in use.

Weakly supervised instance segmentation reports AP25/50/70/75 without saying how precision is averaged: COCO's
101 recall points with 100 detections per image (``COCOeval`` with its thresholds set), or the area under VOC's
monotone precision-recall curve. The two differ; both are given, COCO's is the headline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.core.evaluation.coco_ap import COCO_IOUS, Backend, CocoAp, coco_ap
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.matching import match_by_class
from stages.core.evaluation.overlap import mask_overlap
from stages.core.evaluation.voc_ap import VocAp, ap_of_matches
from stages.core.structures.detections import Detections

MASK_IOUS = (0.25, 0.5, 0.7, 0.75)


@dataclass(frozen=True)
class MaskAp:
    """Mask AP.

    Attributes:
        coco: COCO-style AP at ``MASK_IOUS`` and COCO's ten thresholds together.
        voc: IoU threshold -> VOC AP of masks (its ``area`` is the usual one).
    """

    coco: CocoAp
    voc: Mapping[float, VocAp]

    @property
    def coco_mean(self) -> float:
        """COCO's AP, the mean over .5:.05:.95."""
        return sum(self.coco.mean_at(iou) for iou in COCO_IOUS) / len(COCO_IOUS)


def mask_ap(
    detections: Mapping[str, Detections],
    ground_truth: Mapping[str, ImageGroundTruth],
    num_classes: int,
    iou_thresholds: Sequence[float] = MASK_IOUS,
    backend: Backend = "auto",
) -> MaskAp:
    """Mask AP of segmentations (image id -> detections with masks).

    Raises:
        SchemaError: unknown images or classes, masks missing or of another size than their image.
        InputError: an image of the ground truth has objects and no masks; see :func:`images_with_masks`.
    """
    thresholds = tuple(sorted({*iou_thresholds, *COCO_IOUS}))
    matches = match_by_class(detections, ground_truth, num_classes, mask_overlap)
    return MaskAp(
        coco=coco_ap(detections, ground_truth, num_classes, "segm", thresholds, backend),
        voc={iou: ap_of_matches(matches, iou) for iou in iou_thresholds},
    )


def images_with_masks(ground_truth: Mapping[str, ImageGroundTruth]) -> dict[str, ImageGroundTruth]:
    """Images on which masks can be judged: those with masks, and those without objects.

    VOC segments only part of its images. Empty when no image has a mask.
    """
    if not any(true.masks for true in ground_truth.values()):
        return {}
    return {name: true for name, true in ground_truth.items() if true.masks is not None or not len(true)}
