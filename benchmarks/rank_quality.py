"""How well `weaksam rank` finds the images whose pseudo boxes are wrong: the order against the ground truth.

    python -m benchmarks.rank_quality runs/shapes --split shapes_train

An image's mistakes are its pseudo boxes that are no object of their class (IoU 0.5) and the objects without a pseudo
box. Printed are Spearman's correlation of the order with them, and the fraction of all mistakes that the first fifth of
the images holds, beside that of a random and of a perfect order.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.coco_json import read_dataset
from stages.core.datasets.catalog import data_root, open_split
from stages.core.evaluation.ground_truth import ImageGroundTruth, load_ground_truth
from stages.core.evaluation.overlap import box_overlap
from stages.core.structures.detections import Detections
from weaksam_cli.ranking import ranked_images

FIRST = 0.2
"""Fraction of the images that a person is taken to look at."""


@dataclass(frozen=True)
class RankQuality:
    """How an order of images fits their mistakes; fractions of all mistakes."""

    images: int
    mistakes: int
    spearman: float
    first: float
    perfect: float


def mistakes(taught: Detections, truth: ImageGroundTruth, iou: float = 0.5) -> int:
    """Wrong pseudo boxes and missed objects of one image; objects that are difficult may be missed."""
    overlap_PG = box_overlap(taught, truth)
    fits_PG = (overlap_PG >= iou) & (taught.classes[:, None] == truth.classes[None, :])
    found: set[int] = set()
    wrong = 0
    for row in np.argsort(-taught.scores, kind="stable"):
        free = [column for column in np.flatnonzero(fits_PG[row]).tolist() if column not in found]
        if free:
            found.add(max(free, key=lambda column: overlap_PG[row, column]))
        else:
            wrong += 1
    return wrong + sum(not hard and i not in found for i, hard in enumerate(truth.difficult))


def quality(expected: NDArray[np.float64], found: NDArray[np.float64]) -> RankQuality:
    """Compare what images are ordered by with their mistakes.

    Args:
        expected: (n,) the larger, the earlier a person looks at the image.
        found: (n,) mistakes.
    """
    count = max(1, round(FIRST * len(found)))
    first = found[np.argsort(-expected, kind="stable")[:count]].sum()
    return RankQuality(
        images=len(found),
        mistakes=int(found.sum()),
        spearman=float(np.corrcoef(_ranks(expected), _ranks(found))[0, 1]),
        first=float(first / found.sum()),
        perfect=float(np.sort(found)[::-1][:count].sum() / found.sum()),
    )


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks, equal values with the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return means


def main() -> None:
    """Print one line per run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--split", required=True)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    root = data_root(options.data)
    for run in options.runs:
        ranked = ranked_images(run, options.split, root)
        split = open_split(options.split, root)
        taught = read_dataset(run / "pgt" / options.split / "pgt.json", split).boxes
        ids = [image.id for image in ranked if image.id in taught]
        truth = load_ground_truth(options.split, root, ids=frozenset(ids)).images
        pairs = [(i.disagreement, mistakes(taught[i.id], truth[i.id])) for i in ranked if i.id in truth]
        expected, found = (np.array(side, np.float64) for side in zip(*pairs, strict=True))
        result = quality(expected, found)
        print(
            f"{run}: {result.images} images, {result.mistakes} mistakes, Spearman {result.spearman:.2f}, first fifth "
            f"{result.first:.0%} of them (at random {FIRST:.0%}, perfect {result.perfect:.0%})"
        )


if __name__ == "__main__":
    main()
