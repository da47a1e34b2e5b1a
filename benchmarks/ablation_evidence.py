"""Why one row of the ablation is better than another, image by image: what its highest-scoring boxes are.

Compares two files of detections of one split. For every image and class in it, the highest-scoring box of the class is
right (IoU .5 with an object of the class), on an object of another class, a part of an object, around one or several
objects but too large, elsewhere, or missing. The same for the boxes that decide AP: of each class as many of the
highest-scoring ones over the split as it has objects, where a second box on an object is a duplicate. Prints both
counts, the change from the first file to the second, and the images that were won and lost.

    python -m benchmarks.ablation_evidence --split shapes_test \\
        --before runs/ablation-shapes/wsod/oicr/s0/wsod/shapes_test/detections.json \\
        --after runs/ablation-shapes/wsod/mist/s0/wsod/shapes_test/detections.json
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from stages.core.artifacts.coco_json import read_results
from stages.core.artifacts.manifest import MANIFEST_NAME, read_manifest
from stages.core.datasets.catalog import data_root
from stages.core.evaluation.ground_truth.types import ImageGroundTruth
from stages.core.evaluation.matching import ignored_objects
from stages.core.evaluation.overlap import FloatArray, box_iou
from stages.core.evaluation.tasks import load_labeled_split
from stages.core.ops.boxes import pairwise_containment
from stages.core.structures.detections import Detections

Outcome = Literal["right", "duplicate", "other class", "part", "too large", "elsewhere", "none"]
OUTCOMES: tuple[Outcome, ...] = (
    "right", "duplicate", "other class", "part", "too large", "elsewhere", "none",
)  # fmt: skip
RIGHT_IOU = 0.5
INSIDE = 0.7
"""Fraction of a box inside an object from which it is a part; of an object inside a box, from which it is too large."""


def outcome(box_xyxy: FloatArray, class_index: int, ground_truth: ImageGroundTruth) -> tuple[Outcome, int]:
    """What a box (4,) of a class is, and the row of the object it is right about (-1: none).

    Difficult objects and crowds are objects here, too: a box on one is not wrong.
    """
    own = np.flatnonzero(ground_truth.classes == class_index)
    ious = box_iou(box_xyxy[None], ground_truth.boxes_xyxy)[0]
    if len(own) and ious[own].max() >= RIGHT_IOU:
        return "right", int(own[ious[own].argmax()])
    if len(ious) and ious.max() >= RIGHT_IOU:
        return "other class", -1
    if len(own):
        box, objects = torch.from_numpy(box_xyxy[None]), torch.from_numpy(ground_truth.boxes_xyxy[own])
        if float(pairwise_containment(box, objects).max()) >= INSIDE:
            return "part", -1
        if float(pairwise_containment(objects, box).max()) >= INSIDE:
            return "too large", -1
    return "elsewhere", -1


def best_boxes(
    found: Mapping[str, Detections], ground_truth: Mapping[str, ImageGroundTruth]
) -> dict[tuple[str, int], Outcome]:
    """(image, class in it) -> what the highest-scoring box of the class is."""
    outcomes: dict[tuple[str, int], Outcome] = {}
    for image_id, true in ground_truth.items():
        boxes = found.get(image_id, Detections.empty())
        for c in sorted(set(true.classes[~ignored_objects(true)].tolist())):
            own = boxes[boxes.classes == c].best_first()
            if len(own) == 0:
                outcomes[image_id, c] = "none"
                continue
            outcomes[image_id, c] = outcome(own.boxes_xyxy[0].astype(np.float64), c, true)[0]
    return outcomes


def deciding_boxes(
    found: Mapping[str, Detections], ground_truth: Mapping[str, ImageGroundTruth], classes: int
) -> Counter[Outcome]:
    """What the highest-scoring boxes of each class are, as many as the class has objects in the split."""
    counts: Counter[Outcome] = Counter()
    for c in range(classes):
        objects = sum(int((t.classes[~ignored_objects(t)] == c).sum()) for t in ground_truth.values())
        ranked = sorted(
            (-float(boxes.scores[row]), image_id, int(row))
            for image_id, boxes in found.items()
            if image_id in ground_truth
            for row in np.flatnonzero(boxes.classes == c)
        )[:objects]
        taken: set[tuple[str, int]] = set()
        for _, image_id, row in ranked:
            what, place = outcome(
                found[image_id].boxes_xyxy[row].astype(np.float64), c, ground_truth[image_id]
            )
            if what == "right" and (image_id, place) in taken:
                what = "duplicate"
            taken.add((image_id, place))
            counts[what] += 1
        counts["none"] += objects - len(ranked)
    return counts


def compare(
    before: Mapping[str, Detections],
    after: Mapping[str, Detections],
    ground_truth: Mapping[str, ImageGroundTruth],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Counts of both files, and the images where the highest-scoring box of a class became right or ceased to be."""
    first, second = best_boxes(before, ground_truth), best_boxes(after, ground_truth)
    changes = {
        name: [
            {
                "image": image_id,
                "class": classes[c],
                "before": first[image_id, c],
                "after": second[image_id, c],
            }
            for image_id, c in first
            if (first[image_id, c] == "right", second[image_id, c] == "right") == wanted
        ]
        for name, wanted in (("won", (False, True)), ("lost", (True, False)))
    }
    deciding = [deciding_boxes(found, ground_truth, len(classes)) for found in (before, after)]
    best = [Counter(outcomes.values()) for outcomes in (first, second)]
    return {
        "best": [{name: counts[name] for name in OUTCOMES} for counts in best],
        "deciding": [{name: counts[name] for name in OUTCOMES} for counts in deciding],
        **changes,
    }


def text(result: Mapping[str, Any], shown: int) -> str:
    """Markdown tables of the counts, and the first images of each list."""
    lines = []
    for key, title in (
        ("best", "highest-scoring box per image and class"),
        ("deciding", "boxes that decide AP"),
    ):
        before, after = result[key]
        lines += [f"| {title} | before | after | change |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {before[name]} | {after[name]} | {after[name] - before[name]:+d} |"
            for name in OUTCOMES
            if before[name] or after[name]
        ]
        lines.append("")
    for name in ("won", "lost"):
        found = result[name]
        lines.append(f"{name}: {len(found)}")
        lines += [f"  {e['image']} {e['class']}: {e['before']} -> {e['after']}" for e in found[:shown]]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables; with `--out`, write everything as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", default="shapes_test", help="split of both files, in VOC or COCO layout")
    parser.add_argument("--before", type=Path, required=True, help="detections.json of one row")
    parser.add_argument("--after", type=Path, required=True, help="detections.json of the other")
    parser.add_argument("--data", type=Path, help="folder of data sets; default $WEAKSAM_DATA, else ./data")
    parser.add_argument(
        "--limit", type=int, help="first images only; default as the first file's manifest says"
    )
    parser.add_argument("--show", type=int, default=10, help="images listed of those won and of those lost")
    parser.add_argument("--out", type=Path, help="JSON file with all of them")
    options = parser.parse_args(arguments)
    limit = options.limit
    if limit is None and (options.before.parent / MANIFEST_NAME).is_file():
        limit = read_manifest(options.before.parent).limit
    labeled = load_labeled_split(options.split, data_root(options.data), limit)
    before, after = (read_results(path, labeled.split) for path in (options.before, options.after))
    result = compare(before, after, labeled.images, labeled.split.classes)
    print(text(result, options.show))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
