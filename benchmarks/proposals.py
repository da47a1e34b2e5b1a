"""What each source of prompts adds to the proposals, and the published settings against the default ones.

Runs the proposal stage's own code on the images and prompts of a finished run and measures recall against the
truth, which nothing but this benchmark sees:

    python -m benchmarks.proposals --run runs/shapes --split shapes_test --data data --limit 100

Rows: the grid alone, then with coarse, fine and cross points added one by one, for the settings ``default`` and
``paper``. Every image is encoded and decoded once per settings; the rows are subsets of those candidates, which
is what a run without the sources left out would have found.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stages.core.artifacts.schemas import PROMPTS, SOURCE_BITS
from stages.core.artifacts.table import Table, read_table
from stages.core.datasets.catalog import data_root, open_split
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.evaluation.recall import ProposalRecall, proposal_recall
from stages.core.evaluation.truth.load import load_truth
from stages.core.vision.segmenters import Segmenter, load_segmenter
from stages.propose.candidates import Candidates
from stages.propose.config import PAPER, ProposeConfig
from stages.propose.decoding import decode_candidates
from stages.propose.merging import merge_candidates
from stages.propose.proposer import Proposer

ROWS = {"grid": 1, "+ coarse": 3, "+ fine": 7, "+ cross": 15}
"""Row of the ablation -> source bits used."""
assert ROWS["+ cross"] == sum(SOURCE_BITS.values())

Boxes = dict[str, NDArray[np.float64]]


def candidates_of(
    segmenter: Segmenter, config: ProposeConfig, split: WeakSplit, prompts: Table, device: str
) -> dict[str, Candidates]:
    """Filtered candidates of every image, before any NMS."""
    proposer = Proposer(segmenter, config, device)
    found = {}
    for number, image_id in enumerate(split.ids):
        image = load_image(split.image_path(image_id))
        asked = proposer.prompts(prompts.rows(image_id), image.shape[0], image.shape[1])
        with torch.inference_mode():
            encoded = segmenter.encode(image)
            found[image_id] = decode_candidates(segmenter, encoded, asked, config, proposer.batch_size)
        print(f"\r{number + 1}/{len(split.ids)}", end="", flush=True)
    print()
    return found


def kept(found: dict[str, Candidates], config: ProposeConfig, bits: int) -> Boxes:
    """Proposals when only the sources in ``bits`` are asked."""
    boxes = {}
    for image_id, candidates in found.items():
        asked = candidates.select((candidates.source & bits) != 0)
        boxes[image_id] = merge_candidates(asked, config).boxes_xyxy.double().numpy()
    return boxes


def figures(recall: ProposalRecall) -> dict[str, float]:
    """Boxes per image, recall at three IoUs, and average recall over .5:.05:.95 with all boxes."""
    steps = np.arange(0.5, 0.96, 0.05)
    average = float(np.mean([recall.at(float(step)) for step in steps]))
    values = {"boxes": recall.boxes_per_image, "AR": average}
    return values | {f"R{round(100 * iou)}": recall.at(iou) for iou in (0.5, 0.75, 0.9)}


def main() -> None:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="run folder with the prompts of the split")
    parser.add_argument("--split", default="shapes_test")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--segmenter", default="sam-nano")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--grid", type=int, help="grid points per side for both settings")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    root = data_root(options.data)
    split = open_split(options.split, root)
    split = split.limited(options.limit) if options.limit else split
    prompts = read_table(options.run / "prompt" / options.split / "prompts.h5", PROMPTS)
    truth = load_truth(options.split, root).images
    truth = {image_id: truth[image_id] for image_id in split.ids}
    segmenter = load_segmenter(options.segmenter, options.checkpoint, options.device)
    grid = {} if options.grid is None else {"grid_side": options.grid}
    report: dict[str, dict[str, float]] = {}
    for name, values in (("default", {}), ("paper", PAPER)):
        config = ProposeConfig.model_validate({**values, **grid})
        found = candidates_of(segmenter, config, split, prompts, options.device)
        for row, bits in ROWS.items():
            report[f"{name}: {row}"] = figures(proposal_recall(kept(found, config, bits), truth))
    for row, measured in report.items():
        print(f"{row:20s} " + "  ".join(f"{key} {value:7.3f}" for key, value in measured.items()))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
