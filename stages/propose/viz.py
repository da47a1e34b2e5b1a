"""Pictures of ``proposals.h5``: boxes in the color of the source that found them, best last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.core.artifacts.schemas import PROPOSALS, SOURCE_BITS, rows_to_boxes
from stages.core.artifacts.table import read_table
from stages.core.datasets.split import WeakSplit
from stages.core.viz.drawing import Picture, contact_sheet, draw_boxes
from stages.core.viz.palette import SOURCE_COLORS
from stages.core.viz.stage_pictures import draw_each

SIDE = 360
BOXES_DRAWN = 40
"""Per source and image, by predicted IoU; more hide the picture."""


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw some images, one PNG each: the boxes of every source side by side.

    Args:
        out: The stage's output folder.
        split: Where the images are.
        ids: Which images; those without an entry are skipped.
        folder: Where the pictures go.
    """
    table = read_table(out / "proposals.h5", PROPOSALS)

    def render(image_id: str, image: Picture, factor: float) -> Picture:
        rows = table.rows(image_id)
        boxes = rows_to_boxes(rows) * factor
        pictures, titles = [], []
        for name, bit in SOURCE_BITS.items():
            found = np.flatnonzero(rows["source"] & bit)
            # The first box is drawn on top.
            best = found[np.argsort(-rows["predicted_iou"][found], kind="stable")][:BOXES_DRAWN]
            pictures.append(draw_boxes(image, boxes[best], SOURCE_COLORS[name], thickness=1))
            titles.append(f"{name}: {len(found)}")
        return contact_sheet(pictures, columns=len(SOURCE_BITS), titles=titles)

    return draw_each(split, [i for i in ids if i in table], folder, render, SIDE)
