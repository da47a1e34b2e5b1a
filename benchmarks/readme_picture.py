"""The picture of the README: images of a finished run, a column for each stage.

    python -m benchmarks.readme_picture --run runs/demo --split shapes_train --out docs/images/stages.png

Without ``--ids`` the images are evenly spaced through the split.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from stages.core.datasets.catalog import data_root, open_split
from stages.core.viz.drawing import Picture, contact_sheet, save_png
from stages.core.viz.image_choice import evenly_spaced
from stages.core.viz.panels import Panel, image_panels, read_artifacts
from stages.core.viz.run_facts import read_run

COLUMNS = (
    "Image",
    "Fine map",
    "Point prompts",
    "Proposals",
    "Pseudo ground truth",
    "Retrained detector",
    "Instance segmenter",
)
TITLES = ("tags", "cam", "prompt", "propose", "wsod + pgt", "retrain", "wsis")
SIDE = 236
MAX_BYTES = 400_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture and say how large it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--split", default="shapes_train")
    parser.add_argument("--ids", nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images/stages.png"))
    options = parser.parse_args(arguments)

    facts = read_run(options.run, (options.split,))
    split, limit = open_split(options.split, data_root(options.data)), facts.limit(options.split)
    split = split if limit is None else split.limited(limit)
    artifacts = read_artifacts(facts.finished(options.split), split)
    cells: list[Picture] = []
    titles: list[str] = []
    ids = options.ids or evenly_spaced(split.ids, options.rows)
    for image_id in ids:
        chosen = choose(image_panels(artifacts, split, image_id, None))
        cells += [square(panel.picture) for panel in chosen]
        titles += [caption(panel, split.classes, split.tags(image_id)) for panel in chosen]
    sheet = contact_sheet(cells, columns=len(cells) // len(ids), pad=6, titles=titles)
    save_png(options.out, few_colors(sheet))
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


def choose(panels: Sequence[Panel]) -> list[Panel]:
    """The first panel of each column that the run has."""
    return [
        next(p for p in panels if p.title == title) for title in COLUMNS if title in {p.title for p in panels}
    ]


def caption(panel: Panel, classes: Sequence[str], tags: Sequence[int]) -> str:
    """The stage's name; the image's own tags over the image."""
    if panel.title == "Image":
        return "tags: " + ", ".join(classes[t] for t in tags)
    return TITLES[COLUMNS.index(panel.title)]


def square(picture: Picture) -> Picture:
    """Scaled to fit a square of SIDE pixels."""
    factor = SIDE / max(picture.shape[:2])
    size = (round(picture.shape[1] * factor), round(picture.shape[0] * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def few_colors(sheet: Picture) -> Picture:
    """Fewer shades until a PNG fits into MAX_BYTES: 5 bits per channel at worst, then fewer pixels."""
    for bits in (8, 7, 6, 5):
        kept = np.asarray(sheet >> (8 - bits) << (8 - bits), dtype=np.uint8)
        good, data = cv2.imencode(".png", kept, [cv2.IMWRITE_PNG_COMPRESSION, 9])
        if good and data.size <= MAX_BYTES:
            return kept
    size = (sheet.shape[1] * 7 // 10, sheet.shape[0] * 7 // 10)
    return np.asarray(cv2.resize(sheet, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


if __name__ == "__main__":
    main()
