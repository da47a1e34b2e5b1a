"""Where a chain on photographs loses: from the maps to the retrained detector, class by class, with its bound.

Measures finished runs of one data set, several seeds at once, on a few classes. Ground truth is for this table alone:
it enters no stage. Stages that a run lacks are left out.

    python -m benchmarks.photos --runs runs/photos/default/s0 runs/photos/default/s1 --proposals runs/photos/proposals \
        --bounds runs/photos/bound/s0 runs/photos/bound/s1 --classes bus car cat train

`benchmarks.photo_runs` makes such runs.

rows of the table, each per class and as mean over the classes:

* pointing: the maximum of the fine map lies on an object; train split
* oracle: some proposal overlaps an object with IoU >= .5; train split
* no training: so does the proposal of best map evidence (`stages.wsod.evidence.class_scores`)
* wsod: CorLoc (train) and AP50 (test), and what its best box per tag is: right (IoU >= .5), a part (most of it lies in
  an object), too large (most of an object lies in it), or elsewhere
* pgt: precision and recall of pseudo boxes; retrain: CorLoc (train) and AP50 (test); bound: AP50 of the same detector
  trained on true boxes (`benchmarks.supervised_bound`)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.supervised_bound import limit_of
from stages.core.artifacts.coco_json import read_results
from stages.core.artifacts.evidence import stored_evidence
from stages.core.artifacts.schemas import PROPOSALS, rows_to_boxes
from stages.core.artifacts.table import Table, read_table
from stages.core.datasets.catalog import data_root
from stages.core.errors import UsageError, did_you_mean
from stages.core.evaluation.corloc import corloc
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.matching import ignored_objects
from stages.core.evaluation.overlap import box_iou
from stages.core.evaluation.tasks import LabeledSplit, load_labeled_split, measure
from stages.core.formatting import format_number
from stages.core.ops.boxes import pairwise_containment
from stages.core.structures.detections import Detections
from stages.wsod.evidence.class_scores import class_scores

Floats = NDArray[np.float64]
RIGHT = 0.5
"""IoU from which a box is right."""
MOST = 0.8
"""Fraction of a box in an object (part), or of an object in a box (too large)."""
KINDS = ("right", "part", "too large", "elsewhere")


@dataclass(frozen=True)
class Row:
    """One line of the table: values per class of the split, (C,), nan where a class has none."""

    name: str
    split: str
    values: Floats


def map_rule(proposals: Table, images: Sequence[str]) -> dict[str, Detections]:
    """The proposal of best map evidence for every class that has maps, one box per image and class."""
    chosen = {}
    for image_id in images:
        rows = proposals.rows(image_id)
        evidence = stored_evidence(proposals, image_id)
        boxes = rows_to_boxes(rows)
        scores = class_scores(evidence, evidence.classes.tolist())
        if not scores.size:
            chosen[image_id] = Detections.empty()
            continue
        best = scores.argmax(axis=0)
        usable = scores.max(axis=0) > 0
        chosen[image_id] = Detections(
            boxes[best[usable]].astype(np.float32), evidence.classes[usable], scores.max(axis=0)[usable]
        )
    return chosen


def oracle(proposals: Table, ground_truth: Mapping[str, ImageGroundTruth], num_classes: int) -> Floats:
    """Fraction of the images of each class in which some proposal is right, (C,); nan without an image."""
    hits, images = np.zeros(num_classes), np.zeros(num_classes)
    for image_id, true in ground_truth.items():
        rows = proposals.rows(image_id)
        boxes = rows_to_boxes(rows).astype(np.float64)
        for label, objects in objects_by_class(true):
            images[label] += 1
            hits[label] += bool(len(boxes) and box_iou(boxes, objects).max() >= RIGHT)
    return np.where(images > 0, hits / np.maximum(images, 1), np.nan)


def objects_by_class(true: ImageGroundTruth) -> Iterator[tuple[int, Floats]]:
    """Classes of an image's counted objects, ascending, with their boxes (n, 4)."""
    counted = ~ignored_objects(true)
    for label in np.unique(true.classes[counted]).tolist():
        yield label, true.boxes_xyxy[counted & (true.classes == label)]


def error_kinds(
    detections: Mapping[str, Detections], ground_truth: Mapping[str, ImageGroundTruth], num_classes: int
) -> dict[str, Floats]:
    """What the best box of each image and class is, as fractions of the images of the class, (C,) per kind.

    An image without a box of the class counts as elsewhere.
    """
    counts = {kind: np.zeros(num_classes) for kind in KINDS}
    for image_id, true in ground_truth.items():
        found = detections.get(image_id, Detections.empty())
        for label, objects in objects_by_class(true):
            members = np.flatnonzero(found.classes == label)
            top = members[found.scores[members].argmax()] if len(members) else None
            kind = "elsewhere" if top is None else kind_of(found.boxes_xyxy[top], objects)
            counts[kind][label] += 1
    total = sum(counts.values(), np.zeros(num_classes))
    return {kind: np.where(total > 0, own / np.maximum(total, 1), np.nan) for kind, own in counts.items()}


def kind_of(box_xyxy: NDArray[np.floating], objects_xyxy: Floats) -> str:
    """Which of `KINDS` a box is, given the objects (n, 4) of its class."""
    box, objects = torch.from_numpy(box_xyxy.astype(np.float64)[None]), torch.from_numpy(objects_xyxy)
    if box_iou(box.numpy(), objects_xyxy).max() >= RIGHT:
        return "right"
    if pairwise_containment(box, objects).max() >= MOST:
        return "part"
    return "too large" if pairwise_containment(objects, box).max() >= MOST else "elsewhere"


def measure_run(
    run: Path, train: str, test: str, data: Path, bound: Path | None, proposals_run: Path | None = None
) -> list[Row]:
    """All rows of one run, of the stages it has; maps and proposals may be those of another run."""
    shared = proposals_run or run
    rows: list[Row] = []
    at = ground_of(run, train, data)
    classes = len(at.split.classes)

    def figure(name: str, split: str, task: str, file: Path, key: str) -> None:
        if file.is_file():
            per_class = measure(task, file, ground_of(run, split, data)).per_class
            rows.append(Row(name, split, np.array([per_class[c][key] for c in at.split.classes])))

    figure("pointing, fine map", train, "cams", shared / "cam" / train / "cams.h5", "pointing_fine")
    proposals_file = shared / "propose" / train / "proposals.h5"
    if proposals_file.is_file():
        proposals = read_table(proposals_file, PROPOSALS)
        rows.append(Row("oracle", train, oracle(proposals, at.images, classes)))
        ruled = corloc(map_rule(proposals, tuple(at.images)), at.images, classes)
        rows.append(Row("no training, CorLoc", train, ruled.per_class))
    for stage in ("wsod", "retrain"):
        on_train = run / stage / train / "detections.json"
        figure(f"{stage}, CorLoc", train, "detections", on_train, "corloc")
        if on_train.is_file():
            kinds = error_kinds(read_results(on_train, at.split), at.images, classes)
            rows += [Row(f"{stage}, best box {kind}", train, values) for kind, values in kinds.items()]
        figure(f"{stage}, AP50", test, "detections", run / stage / test / "detections.json", "ap50")
        if stage == "wsod":
            pgt = run / "pgt" / train / "pgt.json"
            figure("pgt, precision", train, "pgt", pgt, "precision50")
            figure("pgt, recall", train, "pgt", pgt, "recall50")
    if bound is not None:
        figure("bound, AP50", test, "detections", bound / "retrain" / test / "detections.json", "ap50")
    return rows


def ground_of(run: Path, split: str, data: Path) -> LabeledSplit:
    """Ground truth of the images of a split that the run's stages worked on."""
    return load_labeled_split(split, data, limit_of(run, split))


def chosen_classes(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Indices of the classes asked for; all if none is.

    Raises:
        UsageError: no such class.
    """
    for name in names:
        if name not in known:
            raise UsageError(f"no class '{name}'", where="--classes", hint=did_you_mean(name, known))
    return [list(known).index(name) for name in names] if names else list(range(len(known)))


def over_runs(found: Sequence[Sequence[Row]]) -> list[tuple[str, str, Floats]]:
    """Rows that every run has, in the order of the first: name, split and values (runs, C)."""
    tables = [{(row.name, row.split): row.values for row in rows} for rows in found]
    keys = [key for key in tables[0] if all(key in table for table in tables)]
    return [(*key, np.stack([table[key] for table in tables])) for key in keys]


def as_text(rows: Sequence[tuple[str, str, Floats]], classes: Sequence[int], names: Sequence[str]) -> str:
    """The table in Markdown: mean over runs per class, and mean ± standard deviation of the classes' mean."""
    header = ["what", "split", *(names[c] for c in classes), "mean"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for name, split, values in rows:
        own = values[:, classes]
        if np.isnan(own).all():
            continue
        means = np.nanmean(own, axis=1)
        spread = f" ± {format_number(float(means.std(ddof=1)))}" if len(means) > 1 else ""
        cells = [format_number(float(np.nanmean(one))) if not np.isnan(one).all() else "-" for one in own.T]
        lines.append(f"| {' | '.join([name, split, *cells, format_number(float(means.mean())) + spread])} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it beside the first run if `--json` names a file."""
    parser = argparse.ArgumentParser(description="where a chain on photographs loses")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="finished runs, one per seed")
    parser.add_argument("--train", default="voc07_trainval", help="split trained on")
    parser.add_argument("--test", default="voc07_test", help="split measured on")
    parser.add_argument("--classes", nargs="*", default=[], help="classes to show; default all")
    parser.add_argument("--proposals", type=Path, help="run of maps and proposals, if all runs share one")
    parser.add_argument(
        "--bounds", type=Path, nargs="*", default=[], help="bounds, one per run or one for all"
    )
    parser.add_argument("--data", type=Path, help="folder of data sets; default $WEAKSAM_DATA, else ./data")
    parser.add_argument("--json", type=Path, help="also write the values here")
    given = parser.parse_args(arguments)
    data = data_root(given.data)
    names = load_labeled_split(given.train, data, 1).split.classes
    classes = chosen_classes(given.classes, names)
    bounds = (
        given.bounds * len(given.runs) if len(given.bounds) == 1 else given.bounds or [None] * len(given.runs)
    )
    if len(bounds) != len(given.runs):
        raise UsageError(
            f"{len(bounds)} bounds of {len(given.runs)} runs",
            where="--bounds",
            hint="give one, or one per run",
        )
    rows = over_runs(
        [
            measure_run(run, given.train, given.test, data, bound, given.proposals)
            for run, bound in zip(given.runs, bounds, strict=True)
        ]
    )
    print(as_text(rows, classes, names))
    if given.json is not None:
        values = [
            {"what": name, "split": split, "classes": {names[c]: v[:, c].tolist() for c in classes}}
            for name, split, v in rows
        ]
        given.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
