"""COCO average precision of boxes and masks, computed by pycocotools' ``COCOeval``, quietly.

Any set of IoU thresholds can be asked for; the default is COCO's .5:.05:.95. With the extra ``fast``,
faster-coco-eval (C++, the same figures, about ten times quicker) is used instead. Where VOC data is measured,
difficult objects are ignored as COCO ignores objects outside an area range: they may be matched, and count
neither for nor against. Lin et al., "Microsoft COCO", ECCV 2014; cocodataset.org, detection evaluation.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stages.core.errors import EnvironmentFault
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.matching import check_detections, class_mean
from stages.core.evaluation.overlap import FloatArray, require_masks
from stages.core.structures.detections import Detections
from stages.core.structures.rle import rle_area

COCO_IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
SIZES = ("small", "medium", "large")
Backend = Literal["auto", "pycocotools", "faster"]
IouType = Literal["bbox", "segm"]


@dataclass(frozen=True)
class CocoAp:
    """COCO's 101-point average precision with at most 100 detections per image.

    Attributes:
        iou_thresholds: (T,).
        per_class: (T, C) in [0, 1]; nan for classes without a counted object.
        by_size: Size name -> (C,) AP over all thresholds for objects of that size, COCO's 32 and 96 px.
        recall: (C,) average recall over the thresholds (AR at 100 detections).
    """

    iou_thresholds: tuple[float, ...]
    per_class: FloatArray
    by_size: Mapping[str, FloatArray]
    recall: FloatArray

    @property
    def mean(self) -> float:
        """AP over all thresholds and classes; nan when no class has ground truth."""
        return class_mean(self.per_class.mean(axis=0))

    @property
    def mean_recall(self) -> float:
        """AR over all thresholds and classes."""
        return class_mean(self.recall)

    def at(self, iou_threshold: float) -> FloatArray:
        """AP of each class ``(C,)`` at one of ``iou_thresholds``.

        Raises:
            ValueError: the threshold was not evaluated.
        """
        row: FloatArray = self.per_class[self.iou_thresholds.index(iou_threshold)]
        return row

    def mean_at(self, iou_threshold: float) -> float:
        """Mean AP at one of ``iou_thresholds``."""
        return class_mean(self.at(iou_threshold))


def coco_ap(
    detections: Mapping[str, Detections],
    ground_truth: Mapping[str, ImageGroundTruth],
    num_classes: int,
    iou_type: IouType = "bbox",
    iou_thresholds: Sequence[float] = COCO_IOUS,
    backend: Backend = "auto",
) -> CocoAp:
    """Evaluate boxes (``bbox``) or masks (``segm``) as COCO does.

    Args:
        detections: Image id -> detections; with masks for ``segm``.
        ground_truth: Image id -> objects for every image of the split; with masks for ``segm``.
        num_classes: Classes are ``0..num_classes - 1``.
        iou_type: What overlaps.
        iou_thresholds: Ascending, in (0, 1].
        backend: ``faster`` needs the extra ``fast``; ``auto`` takes it where installed.

    Raises:
        SchemaError: unknown images or classes, numbers that are not finite, masks missing or of a wrong size.
        InputError: ``segm`` and the ground truth has no masks.
        EnvironmentFault: ``faster`` and it is not installed.
    """
    check_detections(detections, ground_truth, num_classes)
    if iou_type == "segm":
        for image_id in sorted(ground_truth):
            require_masks(detections.get(image_id, Detections.empty()), ground_truth[image_id], image_id)
    coco_class, eval_class = _backend(backend)
    ids = sorted(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = eval_class(
            _indexed(coco_class, ids, ground_truth, num_classes, _objects(ids, ground_truth)),
            _indexed(coco_class, ids, ground_truth, num_classes, _found(ids, detections, iou_type)),
            iou_type,
        )
        evaluator.params.iouThrs = np.array(iou_thresholds, dtype=np.float64)
        evaluator.evaluate()
        evaluator.accumulate()
    return _summary(evaluator.eval, tuple(iou_thresholds), num_classes)


def _backend(backend: Backend) -> tuple[Any, Any]:
    """The ``COCO`` and ``COCOeval`` classes, the latter taught to ignore difficult objects."""
    if backend == "auto":
        backend = "faster" if importlib.util.find_spec("faster_coco_eval") else "pycocotools"
    if backend == "faster":
        try:
            from faster_coco_eval import COCO, COCOeval_faster
        except ImportError as error:
            raise EnvironmentFault(
                "faster-coco-eval is not installed", hint='pip install "weaksam[fast]"'
            ) from error
        return COCO, _ignoring_difficult(COCOeval_faster)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, _ignoring_difficult(COCOeval)


def _ignoring_difficult(base: Any) -> Any:
    class Evaluator(base):  # type: ignore[misc]
        def _prepare(self) -> None:
            super()._prepare()
            # COCOeval resets `ignore` to `iscrowd`; a crowd would also be matched many times over.
            for annotation in self.cocoGt.dataset["annotations"]:
                if annotation["difficult"]:
                    annotation["ignore"] = 1

    return Evaluator


def _indexed(
    coco_class: Any,
    ids: Sequence[str],
    ground_truth: Mapping[str, ImageGroundTruth],
    num_classes: int,
    annotations: list[dict[str, Any]],
) -> Any:
    """A ``COCO`` object over images numbered from 1 in id order and categories numbered from 1."""
    images = [
        {"id": i, "height": ground_truth[name].height, "width": ground_truth[name].width}
        for i, name in enumerate(ids, 1)
    ]
    coco = coco_class()
    coco.dataset = {
        "info": {},
        "images": images,
        "categories": [{"id": c + 1, "name": str(c)} for c in range(num_classes)],
        "annotations": [{"id": i, **entry} for i, entry in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco


def _objects(ids: Sequence[str], ground_truth: Mapping[str, ImageGroundTruth]) -> list[dict[str, Any]]:
    annotations = []
    for image, image_id in enumerate(ids, 1):
        true = ground_truth[image_id]
        for i in range(len(true)):
            x1, y1, x2, y2 = (float(v) for v in true.boxes_xyxy[i])
            entry: dict[str, Any] = {
                "image_id": image,
                "category_id": int(true.classes[i]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1) if true.areas is None else float(true.areas[i]),
                "iscrowd": int(true.crowd[i]),
                "difficult": bool(true.difficult[i]),
            }
            if true.masks is not None:
                entry["segmentation"] = dict(true.masks[i])
            annotations.append(entry)
    return annotations


def _found(
    ids: Sequence[str], detections: Mapping[str, Detections], iou_type: IouType
) -> list[dict[str, Any]]:
    annotations = []
    for image, image_id in enumerate(ids, 1):
        found = detections.get(image_id, Detections.empty())
        for i in range(len(found)):
            x1, y1, x2, y2 = (float(v) for v in found.boxes_xyxy[i])
            entry: dict[str, Any] = {
                "image_id": image,
                "category_id": int(found.classes[i]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": float(found.scores[i]),
            }
            if iou_type == "segm" and found.masks is not None:
                entry["segmentation"] = dict(found.masks[i])
                entry["area"] = float(rle_area(found.masks[i]))
            annotations.append(entry)
    return annotations


def _summary(evaluated: Mapping[str, Any], ious: tuple[float, ...], num_classes: int) -> CocoAp:
    # precision is [threshold, recall point, class, area range, max detections], recall lacks the second;
    # -1 marks a class without ground truth.
    precision = np.asarray(evaluated["precision"], dtype=np.float64)[..., -1]
    recall = np.asarray(evaluated["recall"], dtype=np.float64)[..., -1]
    precision = np.where(precision < 0, np.nan, precision).mean(axis=1)
    recall = np.where(recall < 0, np.nan, recall).mean(axis=0)
    by_size = {size: precision[:, :, i].mean(axis=0) for i, size in enumerate(SIZES, 1)}
    return CocoAp(ious, precision[:, :, 0].reshape(len(ious), num_classes), by_size, recall[:, 0])
