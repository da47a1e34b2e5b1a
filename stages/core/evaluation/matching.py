"""PASCAL VOC's assignment of detections to true objects, shared by AP, mask AP and pseudo-box quality.

Within a class, detections of all images are taken by descending score. Each looks at the one true object
it overlaps most; at a threshold it is *right* if that IoU is reached and the object is not yet taken, a
*false positive* if it falls short or comes second (a duplicate), and *ignored* if the object is difficult
or a crowd. Everingham et al., "The PASCAL VOC Challenge", IJCV 2010, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.table import Table
from stages.core.errors import SchemaError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.overlap import BoolArray, FloatArray, box_overlap
from stages.core.structures.columns import Column, Columns
from stages.core.structures.detections import Detections

IntArray = NDArray[np.int64]
Overlap = Callable[[Detections, ImageGroundTruth], FloatArray]


def ignored_objects(true: ImageGroundTruth) -> BoolArray:
    """Objects ``(m,)`` that count neither for nor against: difficult (VOC) or crowd (COCO)."""
    ignored: BoolArray = np.asarray(true.difficult, dtype=np.bool_) | np.asarray(true.crowd, dtype=np.bool_)
    return ignored


def class_mean(values: FloatArray) -> float:
    """Mean over the classes that have a value; nan when none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def check_images(found: Iterable[str], ground_truth: Mapping[str, ImageGroundTruth], what: str) -> None:
    """Refuse results for images that the ground truth does not hold.

    Raises:
        SchemaError: naming the first of them.
    """
    unknown = sorted(set(found) - set(ground_truth))
    if unknown:
        raise SchemaError(
            f"{len(unknown)} images have {what} but are not in the split: {', '.join(unknown[:5])}",
            hint="evaluate on the split the file was made for",
        )


def images_with_rows(table: Table) -> list[str]:
    """Ids of the images for which a table holds anything."""
    counts = np.diff(table.offsets)
    return [name for name, count in zip(table.ids, counts.tolist(), strict=True) if count]


def check_detections(
    detections: Mapping[str, Detections], ground_truth: Mapping[str, ImageGroundTruth], num_classes: int
) -> None:
    """Refuse detections that cannot be of these images and classes.

    Raises:
        SchemaError: an image the ground truth does not hold, a class outside ``0..num_classes - 1``, or a box or
            score that is not finite.
    """
    check_images((name for name, found in detections.items() if len(found)), ground_truth, "detections")
    for image_id in sorted(detections):
        found = detections[image_id]
        if len(found) and not (found.classes.min() >= 0 and found.classes.max() < num_classes):
            raise SchemaError(
                f"image {image_id}: class index outside 0..{num_classes - 1}",
                hint="use detections made for this data set's class list",
            )
        if not (np.isfinite(found.boxes_xyxy).all() and np.isfinite(found.scores).all()):
            raise SchemaError(f"image {image_id}: a box or score is not a finite number")


@dataclass(frozen=True, eq=False)
class Matches(Columns):
    """Detections of all images, each with the true object of its class that it overlaps most.

    Attributes:
        classes: (n,) 0-based.
        scores: (n,).
        iou: (n,) with that object; 0 where the image has none of the class.
        objects: (n,) number of the object, unique over all images and classes; -1 for none.
        ignored: (n,) the object is difficult or a crowd.
    """

    classes: Annotated[IntArray, Column("int64")]
    scores: Annotated[FloatArray, Column("float64")]
    iou: Annotated[FloatArray, Column("float64")]
    objects: Annotated[IntArray, Column("int64")]
    ignored: Annotated[BoolArray, Column("bool")]

    @classmethod
    def empty(cls) -> Matches:
        """No detection."""
        labels, values = np.zeros(0, np.int64), np.zeros(0)
        return cls(labels, values, values, labels, np.zeros(0, np.bool_))


@dataclass(frozen=True, eq=False)
class ClassMatches(Matches):
    """Those of one class by descending score; equal scores in the order of image ids, then of the list.

    Attributes:
        positives: objects of this class that count.
    """

    positives: int

    def outcomes(self, iou_threshold: float) -> tuple[BoolArray, BoolArray]:
        """True and false positives ``(n,)`` at a threshold in (0, 1]; what is neither was ignored."""
        hit = (self.iou >= iou_threshold) & (self.objects >= 0)
        counted = np.flatnonzero(hit & ~self.ignored)
        _, first = np.unique(self.objects[counted], return_index=True)
        right = np.zeros(len(hit), dtype=np.bool_)
        right[counted[first]] = True
        return right, ~right & ~(hit & self.ignored)


def match_by_class(
    detections: Mapping[str, Detections],
    ground_truth: Mapping[str, ImageGroundTruth],
    num_classes: int,
    overlap: Overlap = box_overlap,
) -> list[ClassMatches]:
    """Match detections with the ground truth, class by class.

    Args:
        detections: Image id -> detections; an image without an entry has none.
        ground_truth: Image id -> objects, for every image of the split.
        num_classes: Classes are ``0..num_classes - 1``.
        overlap: IoU of detections and objects of one image; boxes by default.

    Raises:
        SchemaError: see :func:`check_detections`.
    """
    check_detections(detections, ground_truth, num_classes)
    parts = [Matches.empty()]
    positives = np.zeros(num_classes, dtype=np.int64)
    first_object = 0
    for image_id in sorted(ground_truth):
        true = ground_truth[image_id]
        skip = ignored_objects(true)
        positives += np.bincount(true.classes[~skip].astype(np.int64), minlength=num_classes)
        boxes = detections.get(image_id)
        if boxes is not None and len(boxes):
            iou, index = _best_object(boxes, true, overlap)
            ignored = skip[index] & (index >= 0) if len(skip) else np.zeros(len(index), dtype=np.bool_)
            objects = np.where(index >= 0, index + first_object, -1)
            parts.append(Matches(boxes.classes, boxes.scores.astype(np.float64), iou, objects, ignored))
        first_object += len(true)
    found = Matches.cat(parts)
    ranked = found[np.argsort(-found.scores, kind="stable")]
    return [
        ClassMatches(**vars(ranked[ranked.classes == label]), positives=int(count))
        for label, count in enumerate(positives)
    ]


def _best_object(found: Detections, true: ImageGroundTruth, overlap: Overlap) -> tuple[FloatArray, IntArray]:
    """Highest IoU with an object of the same class and that object's index (-1 where there is none)."""
    if not len(true):
        return np.zeros(len(found)), np.full(len(found), -1, dtype=np.int64)
    same = found.classes[:, None] == np.asarray(true.classes)[None, :]
    iou = np.where(same, overlap(found, true), -1.0)
    index = iou.argmax(axis=1).astype(np.int64)
    best = iou[np.arange(len(found)), index]
    return np.maximum(best, 0.0), np.where(best >= 0, index, -1)
