"""What segmenters find by themselves on a split: proposal recall by size and by class, and the time it takes.

    python -m benchmarks.segmenter_recall --split voc07_test --limit 250 --classes bus,train,motorbike
    python -m benchmarks.segmenter_recall --split fruits_trainval --segmenters sam-nano sam-nano-photo --recipe offline

The proposal stage's own code on the grid alone (no prompts of a classifier), every image by every segmenter in turn, in
one process. `--set SEGMENTER.SETTING=VALUE` changes a setting of one of them. Times are process CPU seconds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from benchmarks.proposals import NO_PROMPTS
from stages.core.config import load_recipe
from stages.core.datasets.catalog import data_root, open_split
from stages.core.datasets.images import load_image
from stages.core.evaluation.ground_truth import ImageGroundTruth, load_ground_truth
from stages.core.evaluation.recall import IOU_THRESHOLDS, SIZE_BOUNDS, ProposalRecall, proposal_recall
from stages.core.segmenters.loading import load_segmenter
from stages.propose.config import ProposeConfig
from stages.propose.proposer import Proposer

Boxes = dict[str, NDArray[np.float64]]


def propose_boxes(proposer: Proposer, image_HW3: NDArray[np.uint8]) -> tuple[NDArray[np.float64], float]:
    """Boxes ``(n, 4)`` of the grid alone, and the CPU seconds they took."""
    start = process_time()
    columns = proposer.propose(image_HW3, NO_PROMPTS).columns
    seconds = process_time() - start
    return np.stack([columns[name] for name in ("x1", "y1", "x2", "y2")], axis=1).astype(np.float64), seconds


def of_classes(ground_truth: dict[str, ImageGroundTruth], wanted: list[int]) -> dict[str, ImageGroundTruth]:
    """Ground truth in which objects of other classes do not count; images without any of these are left out."""
    found = {}
    for image_id, true in ground_truth.items():
        member = np.isin(true.classes, wanted)
        if member.any():
            found[image_id] = replace(true, difficult=true.difficult | ~member)
    return found


def recall_row(recall: ProposalRecall) -> dict[str, list[float]]:
    """Recall at the three IoUs, of all objects and by size; sizes without an object are left out."""
    rows = {"all": [recall.at(iou) for iou in IOU_THRESHOLDS]}
    rows |= {size: [recall.at(iou, size) for iou in IOU_THRESHOLDS] for size in SIZE_BOUNDS}
    return {name: values for name, values in rows.items() if not np.isnan(values).any()}


def print_rows(what: str, name: str, recall: ProposalRecall) -> None:
    """One line of a Markdown table per size."""
    for size, values in recall_row(recall).items():
        cells = " / ".join(f"{value:.3f}" for value in values)
        print(f"| {what} | {name} | {size} | {cells} | {recall.boxes_per_image:.0f} |", flush=True)


def settings_of(segmenter: str, recipe: str, changes: list[str]) -> ProposeConfig:
    """The recipe's proposal settings, with the changes meant for this segmenter."""
    values: dict[str, Any] = dict(load_recipe(recipe).get("propose", {})) if recipe else {}
    values["segmenter"] = segmenter
    for change in changes:
        key, _, value = change.partition("=")
        owner, _, setting = key.rpartition(".")
        if owner in ("", segmenter):
            values[setting] = yaml.safe_load(value)
    return ProposeConfig.model_validate(values)


def main() -> None:
    """Measure, print a Markdown table and one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument(
        "--classes", default="", help="names whose objects are measured once more, separated by commas"
    )
    parser.add_argument("--segmenters", nargs="+", default=["sam-nano", "sam-nano-photo"])
    parser.add_argument(
        "--recipe", default="offline", help="whose proposal settings are used; empty for the defaults"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="[SEGMENTER.]SETTING=VALUE")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = data_root(options.data)
    split = open_split(options.split, root)
    split = split.limited(options.limit) if options.limit else split
    ground_truth = load_ground_truth(options.split, root, ids=frozenset(split.ids)).images
    proposers = {}
    for name in options.segmenters:
        config = settings_of(name, options.recipe, options.set)
        proposers[name] = Proposer(load_segmenter(name, None, options.device), config, options.device)
    boxes: dict[str, Boxes] = {name: {} for name in proposers}
    seconds = dict.fromkeys(proposers, 0.0)
    for image_id in ground_truth:
        image = load_image(split.image_path(image_id))
        for name, proposer in proposers.items():
            boxes[name][image_id], spent = propose_boxes(proposer, image)
            seconds[name] += spent
    print("| objects | segmenter | size | recall at IoU .5 / .75 / .9 | boxes |\n|---|---|---|---|---|")
    wanted = [name for name in options.classes.split(",") if name]
    subset = of_classes(ground_truth, [split.classes.index(name) for name in wanted])
    for name, found in boxes.items():
        print_rows(options.split, name, proposal_recall(found, ground_truth))
        if wanted:
            print_rows(options.classes, name, proposal_recall({i: found[i] for i in subset}, subset))
    print(json.dumps({"seconds_per_image": {n: round(s / len(ground_truth), 3) for n, s in seconds.items()}}))


if __name__ == "__main__":
    main()
