"""What each source of prompts adds to the proposals, for the default and the published settings.

Runs the proposal stage's own code on the images and prompts of finished runs, one run per seed, and measures
recall against the ground truth, which nothing but this benchmark sees:

    make ablation-proposals DATASET=shapes SEEDS='0 1 2'
    python -m benchmarks.proposals --run runs/s0 runs/s1 runs/s2 --split shapes_test --limit 100 --plot ar.png

Rows: the grid alone, then with coarse, fine and cross points added one by one. The drawn objects are few and
large enough that 16 x 16 points leave nothing to add, so coarser grids are shown, too, and no grid at all.
Every image is encoded once for all rows and seeds, every grid decoded once, every run's prompts once per
settings; the rows are subsets of those candidates by provenance, which is what a run without the left-out
sources would have found. Metrics are means over the runs with half their range.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.plots import line_plot, new_figure
from stages.core.artifacts.schemas import PROMPTS, SOURCE_BITS
from stages.core.artifacts.table import Table, read_table
from stages.core.config import load_recipe
from stages.core.datasets.catalog import data_root, open_split
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.ground_truth.load import load_ground_truth
from stages.core.evaluation.recall import ProposalRecall, proposal_recall
from stages.core.segmenters.loading import load_segmenter
from stages.core.segmenters.protocol import EncodedImage, Segmenter
from stages.propose.candidates import Candidates
from stages.propose.config import ProposeConfig
from stages.propose.decoding import decode_candidates
from stages.propose.merging import rank
from stages.propose.prompting import build_prompts
from stages.propose.proposer import Proposer
from stages.propose.refining import refine

ROWS = {"grid": 1, "+ coarse": 3, "+ fine": 7, "+ cross": 15}
"""Row of the ablation -> source bits used."""
assert ROWS["+ cross"] == sum(SOURCE_BITS.values())
SETTINGS: dict[str, dict[str, Any]] = {"default": {}, "paper": load_recipe("paper")["propose"]}
COUNTS = (1, 2, 5, 10, 20, 50, 100, 150, 200, 500, 1000, 2000)
IOUS = np.arange(0.5, 0.96, 0.05)

Boxes = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Variant:
    """One grid under one kind of settings."""

    settings: str
    grid: int

    @property
    def config(self) -> ProposeConfig:
        """Settings of the stage."""
        return ProposeConfig.model_validate({**SETTINGS[self.settings], "points_per_side": self.grid or 1})

    @property
    def name(self) -> str:
        """As printed."""
        return f"{self.settings} {self.grid}x{self.grid}" if self.grid else f"{self.settings}, no grid"


def variants(names: list[str], grids: list[int]) -> list[Variant]:
    """Every grid under the default settings, and the published settings with their own grid."""
    found = [Variant("default", grid) for grid in grids] if "default" in names else []
    return found + ([Variant("paper", int(SETTINGS["paper"]["points_per_side"]))] if "paper" in names else [])


class Measurement:
    """Collects the boxes of all rows, image by image."""

    def __init__(self, segmenter: Segmenter, wanted: list[Variant], device: str) -> None:
        self.segmenter, self.wanted, self.device = segmenter, wanted, device
        self.boxes: dict[tuple[str, int], Boxes] = defaultdict(dict)

    def add(self, image_id: str, image: NDArray[np.uint8], tables: list[Table]) -> None:
        """All rows of one image from one encoding of it."""
        with torch.inference_mode():
            encoded = self.segmenter.encode(image)
            grids = {v: self._decode(encoded, v.config, None, image_id) for v in self.wanted if v.grid}
            for run, table in enumerate(tables):
                for settings in dict.fromkeys(v.settings for v in self.wanted):
                    config = ProposeConfig.model_validate({**SETTINGS[settings], "points_per_side": 0})
                    prompted = self._decode(encoded, config, table, image_id)
                    for variant in (v for v in self.wanted if v.settings == settings):
                        found = Candidates.cat([*([grids[variant]] if variant.grid else []), prompted])
                        self._rows(run, image_id, variant, found, encoded)

    def _decode(
        self, encoded: EncodedImage, config: ProposeConfig, table: Table | None, image_id: str
    ) -> Candidates:
        if table is None:
            config = config.model_copy(update={"prompt_sources": ()})
        proposer = Proposer(self.segmenter, config, self.device)
        known = table is not None and image_id in table
        rows: dict[str, NDArray[Any]] = table.rows(image_id) if table is not None and known else NO_PROMPTS
        prompts = proposer.prompts(rows, encoded.height, encoded.width)
        if len(prompts) == 0:
            return Candidates.empty()
        return decode_candidates(self.segmenter, encoded, prompts, config, proposer.batch_size)

    def _rows(
        self, run: int, image_id: str, variant: Variant, found: Candidates, encoded: EncodedImage
    ) -> None:
        proposer = Proposer(self.segmenter, variant.config, self.device)
        for row, bits in ROWS.items():
            if row == "grid" and not variant.grid:
                continue
            own = found[(found.source & bits) != 0]
            _, kept = refine(self.segmenter, encoded, NO_POINTS, own, variant.config, proposer.batch_size)
            order = torch.argsort(rank(kept, variant.config), descending=True, stable=True)
            label = f"{variant.name}: {row}"
            self.boxes[label, run][image_id] = kept.boxes_xyxy[order].double().numpy()


NO_PROMPTS: dict[str, NDArray[Any]] = {
    "x": np.zeros(0, np.float32), "y": np.zeros(0, np.float32), "class_index": np.zeros(0, np.int32),
    "score": np.zeros(0, np.float32), "source": np.zeros(0, np.int8),
}  # fmt: skip
NO_POINTS = build_prompts(np.zeros((0, 2)), NO_PROMPTS, (), class_prompts=False)


def metrics(recall: ProposalRecall) -> dict[str, float]:
    """Boxes per image, recall at three IoUs, and average recall over .5:.05:.95 with all boxes."""
    values = {"boxes": recall.boxes_per_image}
    values |= {f"R{round(100 * iou)}": recall.at(iou) for iou in (0.5, 0.75, 0.9)}
    return values | {"AR": float(np.mean([recall.at(float(step)) for step in IOUS]))}


def curve(recall: ProposalRecall) -> list[tuple[float, float]]:
    """Average recall against the number of boxes, as far as there are boxes."""
    steps = [recall.curve(float(iou)) for iou in IOUS]
    means = [(count, float(np.mean([step[count] for step in steps]))) for count in COUNTS]
    return [point for i, point in enumerate(means) if i == 0 or means[i - 1][0] < recall.boxes_per_image]


def summarise(
    boxes: dict[tuple[str, int], Boxes], ground_truth: dict[str, ImageGroundTruth]
) -> tuple[dict[str, dict[str, tuple[float, float]]], dict[str, list[tuple[float, float]]]]:
    """Mean and half range of every metric over the runs of a row, and the first run's curve."""
    measured: dict[str, list[dict[str, float]]] = defaultdict(list)
    curves: dict[str, list[tuple[float, float]]] = {}
    for (label, _), found in boxes.items():
        recall = proposal_recall(found, ground_truth, COUNTS)
        measured[label].append(metrics(recall))
        curves.setdefault(label, curve(recall))
    table = {}
    for label, runs in measured.items():
        columns = {key: [run[key] for run in runs] for key in runs[0]}
        table[label] = {
            key: (float(np.mean(values)), (max(values) - min(values)) / 2) for key, values in columns.items()
        }
    return table, curves


def print_table(table: dict[str, dict[str, tuple[float, float]]]) -> None:
    """As Markdown, so that it can be pasted."""
    columns = list(next(iter(table.values())))
    print("| prompts | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for label, values in table.items():
        cells = [
            f"{mean:.1f}" if key == "boxes" else f"{mean:.3f} ± {half:.3f}" if half else f"{mean:.3f}"
            for key, (mean, half) in values.items()
        ]
        print(f"| {label} | " + " | ".join(cells) + " |")


def plotted(curves: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    """The grid alone and all sources of every variant, and the classic methods."""
    return {label: points for label, points in curves.items() if not label.endswith(("coarse", "fine"))}


def main() -> None:
    """Measure, print a table and one line of JSON, draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, nargs="+", help="run folders, one per seed, with the split's prompts"
    )
    parser.add_argument("--split", default="shapes_test")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--segmenter", default="sam-nano")
    parser.add_argument("--segmenter-weights", type=Path)
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--grids", type=int, nargs="+", default=[10, 8, 4, 0], help="of the default settings")
    parser.add_argument("--classic", type=Path, help="what benchmarks/classic_proposals.py wrote")
    parser.add_argument("--list-images", type=Path, help="only write image id -> path for it")
    parser.add_argument("--plot", type=Path, help="PNG of average recall against the number of boxes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    root = data_root(options.data)
    split = open_split(options.split, root)
    split = split.limited(options.limit) if options.limit else split
    if options.list_images:
        paths = {image_id: str(split.image_path(image_id)) for image_id in split.ids}
        options.list_images.parent.mkdir(parents=True, exist_ok=True)
        options.list_images.write_text(json.dumps(paths), encoding="utf-8")
        return
    if not options.run:
        parser.error("--run is needed")
    if options.plot:
        new_figure()
    ground_truth = load_ground_truth(options.split, root).images
    segmenter = load_segmenter(options.segmenter, options.segmenter_weights, options.device)
    measurement = Measurement(segmenter, variants(options.settings, options.grids), options.device)
    measure_split(measurement, split, [_prompts(run, options.split) for run in options.run])
    boxes = dict(measurement.boxes)
    if options.classic:
        for name, found in json.loads(options.classic.read_text(encoding="utf-8")).items():
            boxes[name, 0] = {i: np.array(found[i], np.float64).reshape(-1, 4) for i in split.ids}
    table, curves = summarise(boxes, {image_id: ground_truth[image_id] for image_id in split.ids})
    print_table(table)
    print(json.dumps(table))
    if options.plot:
        title = f"{options.split}, {len(split.ids)} images, {options.segmenter}"
        line_plot(options.plot, title, "boxes per image", "average recall, IoU .5 to .95", plotted(curves))


def _prompts(run: Path, split: str) -> Table:
    return read_table(run / "prompt" / split / "prompts.h5", PROMPTS)


def measure_split(measurement: Measurement, split: WeakSplit, tables: list[Table]) -> None:
    """Every image of the split once."""
    for number, image_id in enumerate(split.ids):
        measurement.add(image_id, load_image(split.image_path(image_id)), tables)
        print(f"\r{number + 1}/{len(split.ids)}", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
