"""Measure one artifact against the ground truth of its split: which metrics belong to which file.

============== ================================ ====================================================
task           artifact                         figures
============== ================================ ====================================================
cams           cams.h5                          pointing accuracy per kind of map
prompts        prompts.h5                       points on objects, objects with a point
proposals      proposals.h5                     recall at IoU .5/.75/.9, boxes per image
detections     detections.json                  VOC AP50 (area, 11-point), COCO AP; CorLoc on train splits
pgt            pgt.json, pgt_masks.json         precision and recall of pseudo boxes (and masks)
segmentations  segmentations.json               mask AP25/50/70/75 (COCO, VOC area), COCO mask AP
============== ================================ ====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stages.core.artifacts.coco_json import read_dataset, read_results
from stages.core.artifacts.files import read_json
from stages.core.artifacts.manifest import MANIFEST_NAME, read_manifest
from stages.core.artifacts.schemas import CAMS, MAP_KINDS, PROMPTS, PROPOSALS, SOURCE_BITS, rows_to_boxes
from stages.core.artifacts.table import read_table
from stages.core.artifacts.table_file import Array
from stages.core.datasets.catalog import open_split
from stages.core.datasets.split import WeakSplit
from stages.core.errors import InputError, MissingInputError, SchemaError, UsageError, did_you_mean
from stages.core.evaluation.coco_ap import coco_ap
from stages.core.evaluation.corloc import corloc
from stages.core.evaluation.ground_truth import ImageGroundTruth, load_ground_truth
from stages.core.evaluation.mask_ap import MASK_IOUS, images_with_masks, mask_ap
from stages.core.evaluation.overlap import FloatArray, mask_overlap
from stages.core.evaluation.pgt_quality import pgt_quality
from stages.core.evaluation.pointing import pointing_accuracy
from stages.core.evaluation.prompt_quality import prompt_quality
from stages.core.evaluation.recall import IOU_THRESHOLDS, SIZE_BOUNDS, proposal_recall
from stages.core.evaluation.report import Report
from stages.core.evaluation.voc_ap import voc_ap
from stages.core.structures.detections import Detections

__all__ = ["TASKS", "LabeledSplit", "Report", "evaluate", "infer_task", "load_labeled_split", "measure"]

BOX_ONLY = "the split has no masks: only boxes were measured"


@dataclass(frozen=True)
class LabeledSplit:
    """What artifacts of a split are measured against.

    Attributes:
        split: Images, cut to ``--limit`` as the artifact was.
        images: Image id -> true objects, for every image of ``split`` that can be read.
    """

    split: WeakSplit
    images: dict[str, ImageGroundTruth]


def load_labeled_split(
    split_name: str, data_root: Path, limit: int | None = None, classes: Sequence[str] = ()
) -> LabeledSplit:
    """Open a split and its ground truth.

    Raises:
        InputError: the split or its ground truth does not exist or is damaged.
    """
    split = open_split(split_name, data_root, classes=classes)
    split = split if limit is None else split.limited(limit)
    truth = load_ground_truth(split_name, data_root, ids=frozenset(split.ids), classes=classes)
    return LabeledSplit(split, truth.images)


def evaluate(
    task: str | None,
    artifact: Path,
    split_name: str,
    data_root: Path,
    *,
    limit: int | None = None,
    classes: Sequence[str] = (),
) -> Report:
    """Measure an artifact against the ground truth of a split.

    Args:
        task: One of ``TASKS``; None takes it from the file.
        artifact: File written by a stage.
        split_name: Split it was made for.
        data_root: Folder of data sets.
        limit: First images in id order; by default as many as the manifest beside the artifact says.
        classes: Restrict the data set to these classes; by default those that the manifest says.

    Raises:
        UsageError: unknown task, or one the file's name and content do not tell.
        InputError: artifact, split or ground truth missing, damaged, or not of one another.
    """
    if not artifact.is_file():
        raise MissingInputError("no such file", where=artifact, hint="run the stage that writes it")
    if (artifact.parent / MANIFEST_NAME).is_file():
        manifest = read_manifest(artifact.parent)
        if artifact.name in manifest.outputs and manifest.split != split_name:
            raise InputError(
                f"was made for split {manifest.split}, not {split_name}",
                where=artifact,
                hint=f"use --split {manifest.split}",
            )
        limit = manifest.limit if limit is None else limit
        classes = classes or manifest.classes
    chosen = infer_task(artifact) if task is None else task
    return measure(chosen, artifact, load_labeled_split(split_name, data_root, limit, classes))


def measure(task: str, artifact: Path, labeled: LabeledSplit) -> Report:
    """Measure an artifact against ground truth already at hand; arguments and errors as for :func:`evaluate`."""
    if task not in TASKS:
        raise UsageError(f"unknown task '{task}'", where="--task", hint=did_you_mean(task, TASKS))
    try:
        return TASKS[task](artifact, labeled)
    except SchemaError as error:
        if error.where is not None:
            raise
        # Metrics do not know files; say which one it was.
        raise SchemaError(error.what, where=artifact, hint=error.hint) from error


def infer_task(artifact: Path) -> str:
    """Task of a file, by its name, else by what it holds.

    Raises:
        UsageError: neither tells.
    """
    by_name = {"pgt_masks": "pgt"}
    stem = by_name.get(artifact.stem, artifact.stem)
    if stem in TASKS:
        return stem
    found = _task_of_content(artifact)
    if found is None:
        raise UsageError(
            "cannot tell what this file holds", where=artifact, hint=f"add --task {'|'.join(TASKS)}"
        )
    return found


def _task_of_content(artifact: Path) -> str | None:
    if h5py.is_hdf5(artifact):
        with h5py.File(artifact, "r") as file:
            name = str(file.attrs.get("weaksam_artifact", ""))
        return name if name in TASKS else None
    if artifact.suffix != ".json":
        return None
    loaded = read_json(artifact)
    if isinstance(loaded, dict) and "annotations" in loaded:
        return "pgt"
    if isinstance(loaded, list) and loaded and isinstance(loaded[0], dict):
        return "segmentations" if "segmentation" in loaded[0] else "detections"
    return None


def _report(
    task: str,
    artifact: Path,
    labeled: LabeledSplit,
    metrics: dict[str, float],
    per_class: dict[str, Array] | None = None,
    notes: tuple[str, ...] = (),
) -> Report:
    by_class: dict[str, dict[str, float]] = {}
    if per_class:
        for i, name in enumerate(labeled.split.classes):
            by_class[name] = {figure: float(values[i]) for figure, values in per_class.items()}
    unread = len(labeled.split) - len(labeled.images)
    if unread:
        notes = (*notes, f"{unread} images have no usable ground truth and were left out")
    flaws = [flaw for image in labeled.images.values() for flaw in image.flaws]
    if flaws:
        notes = (
            *notes,
            f"{len(flaws)} objects of the ground truth are damaged: they, or the masks of their images, were left out"
            f" ({flaws[0].what})",
        )
    return Report(task, artifact.name, labeled.split.name, len(labeled.images), metrics, by_class, notes)


def _known(found: dict[str, Detections], labeled: LabeledSplit) -> dict[str, Detections]:
    """Detections on images with ground truth; the report notes how many images have none."""
    return {name: boxes for name, boxes in found.items() if name in labeled.images}


def _per_image(found: dict[str, Detections], labeled: LabeledSplit) -> float:
    return sum(map(len, found.values())) / len(labeled.images) if labeled.images else float("nan")


def _cams(artifact: Path, labeled: LabeledSplit) -> Report:
    table = read_table(artifact, CAMS)
    result = pointing_accuracy(table, labeled.images, len(labeled.split.classes))
    metrics = {f"pointing_{kind}": result.accuracy(kind) for kind in result.kinds}
    metrics |= {f"pointing_{kind}_class_mean": result.class_mean(kind) for kind in result.kinds}
    for layer, (hits, maps) in result.cross_layers.items():
        metrics[f"pointing_cross_layer{layer}"] = hits / maps
    metrics["maps_per_image"] = result.maps_per_image
    per_class = {f"pointing_{kind}": result.class_accuracy(kind) for kind in result.kinds}
    return _report("cams", artifact, labeled, metrics, per_class)


def _prompts(artifact: Path, labeled: LabeledSplit) -> Report:
    result = prompt_quality(read_table(artifact, PROMPTS), labeled.images)
    used = [kind for i, kind in enumerate(MAP_KINDS) if result.points[i]]
    metrics = {"object_recall": result.object_recall(), "points_per_image": result.points_per_image}
    metrics |= {f"precision_{kind}": result.precision(kind) for kind in used}
    metrics |= {f"object_recall_{kind}": result.object_recall(kind) for kind in used}
    return _report("prompts", artifact, labeled, metrics)


def _proposals(artifact: Path, labeled: LabeledSplit) -> Report:
    table = read_table(artifact, PROPOSALS)
    boxes: dict[str, FloatArray] = {}
    sources: dict[str, Array] = {}
    for name in table.ids:
        rows = table.rows(name)
        # Best first by SAM's own estimate, so that the curve asks what a cap on the number would cost.
        order = np.argsort(-np.nan_to_num(rows["predicted_iou"].astype(np.float64), nan=-1.0), kind="stable")
        corners = rows_to_boxes(rows).astype(np.float64)
        boxes[name], sources[name] = corners[order], rows["source"][order]
    result = proposal_recall(boxes, labeled.images)
    metrics = {f"recall{100 * iou:.0f}": result.at(iou) for iou in IOU_THRESHOLDS}
    metrics["boxes_per_image"] = result.boxes_per_image
    for size in SIZE_BOUNDS:
        metrics |= {f"recall{100 * iou:.0f}_{size}": result.at(iou, size) for iou in IOU_THRESHOLDS}
    for iou in IOU_THRESHOLDS:
        metrics |= {f"recall{100 * iou:.0f}_at_{n}": value for n, value in result.curve(iou).items()}
    for source, bit in SOURCE_BITS.items():
        own = {name: boxes[name][(sources[name] & bit) != 0] for name in boxes}
        if any(map(len, own.values())):
            alone = proposal_recall(own, labeled.images, ())
            metrics |= {f"recall{100 * iou:.0f}_{source}": alone.at(iou) for iou in IOU_THRESHOLDS}
            metrics[f"boxes_per_image_{source}"] = alone.boxes_per_image
    return _report("proposals", artifact, labeled, metrics)


def _detections(artifact: Path, labeled: LabeledSplit) -> Report:
    classes = len(labeled.split.classes)
    found = _known(read_results(artifact, labeled.split), labeled)
    voc = voc_ap(found, labeled.images, classes)
    coco = coco_ap(found, labeled.images, classes)
    metrics = {"ap50": voc.mean_area, "ap50_11point": voc.mean_eleven_point}
    per_class: dict[str, Array] = {"ap50": voc.area, "ap50_11point": voc.eleven_point}
    if labeled.split.role == "train":
        located = corloc(found, labeled.images, classes)
        metrics["corloc"] = located.mean
        per_class["corloc"] = located.per_class
    metrics |= {"coco_ap": coco.mean, "coco_ap50": coco.mean_at(0.5), "coco_ap75": coco.mean_at(0.75)}
    metrics |= {f"coco_ap_{size}": float(_mean(values)) for size, values in coco.by_size.items()}
    metrics |= {"coco_ar100": coco.mean_recall, "boxes_per_image": _per_image(found, labeled)}
    per_class |= {
        "coco_ap": coco.per_class.mean(axis=0),
        "coco_ap50": coco.at(0.5),
        "coco_ap75": coco.at(0.75),
    }
    return _report("detections", artifact, labeled, metrics, per_class)


def _mean(values: FloatArray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _pgt(artifact: Path, labeled: LabeledSplit) -> Report:
    classes = len(labeled.split.classes)
    taken = read_dataset(artifact, labeled.split)
    found = _known(taken.boxes, labeled)
    metrics: dict[str, float] = {}
    per_class: dict[str, Array] = {}
    for iou in (0.5, 0.75):
        result, at = pgt_quality(found, labeled.images, classes, iou), f"{100 * iou:.0f}"
        metrics |= {f"precision{at}": result.precision, f"recall{at}": result.recall, f"f1_{at}": result.f1}
        per_class |= {f"precision{at}": result.class_precision, f"recall{at}": result.class_recall}
    metrics["boxes_per_image"] = _per_image(found, labeled)
    notes: tuple[str, ...] = () if taken.complete else (taken.summary(),)
    if any(boxes.masks is not None for boxes in found.values()):
        annotated = images_with_masks(labeled.images)
        notes += _mask_notes(annotated, labeled)
        if annotated:
            masks = {name: boxes for name, boxes in found.items() if name in annotated}
            for iou in (0.5, 0.75):
                result, at = pgt_quality(masks, annotated, classes, iou, mask_overlap), f"{100 * iou:.0f}"
                metrics |= {f"mask_precision{at}": result.precision, f"mask_recall{at}": result.recall}
    return _report("pgt", artifact, labeled, metrics, per_class, notes)


def _mask_notes(annotated: dict[str, Any], labeled: LabeledSplit) -> tuple[str, ...]:
    if not annotated:
        return (BOX_ONLY,)
    if len(annotated) < len(labeled.images):
        return (f"masks were measured on the {len(annotated)} images that have true masks",)
    return ()


def _segmentations(artifact: Path, labeled: LabeledSplit) -> Report:
    classes = len(labeled.split.classes)
    found = _known(read_results(artifact, labeled.split), labeled)
    annotated = images_with_masks(labeled.images)
    metrics: dict[str, float] = {}
    per_class: dict[str, Array] = {}
    if annotated:
        masks = {name: boxes for name, boxes in found.items() if name in annotated}
        result = mask_ap(masks, annotated, classes)
        for iou in MASK_IOUS:
            metrics[f"mask_ap{100 * iou:.0f}"] = result.coco.mean_at(iou)
            per_class[f"mask_ap{100 * iou:.0f}"] = result.coco.at(iou)
        metrics["mask_ap"] = result.coco_mean
        metrics |= {f"mask_ap{100 * iou:.0f}_area": result.voc[iou].mean_area for iou in MASK_IOUS}
    boxes = voc_ap(found, labeled.images, classes)
    metrics |= {"box_ap50": boxes.mean_area, "instances_per_image": _per_image(found, labeled)}
    per_class["box_ap50"] = boxes.area
    return _report("segmentations", artifact, labeled, metrics, per_class, _mask_notes(annotated, labeled))


TASKS: dict[str, Callable[[Path, LabeledSplit], Report]] = {
    "cams": _cams,
    "prompts": _prompts,
    "proposals": _proposals,
    "detections": _detections,
    "pgt": _pgt,
    "segmentations": _segmentations,
}
