"""Pictures of ``proposals.h5``: boxes in the colour of the source that found them, best last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.core.artifacts.schemas import PROPOSALS, SOURCE_BITS, rows_to_boxes
from stages.core.artifacts.table import read_table
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.viz.drawing import contact_sheet, draw_boxes, enlarged, save_png
from stages.core.viz.palette import SOURCE_COLORS

BOXES_DRAWN = 40
"""Per source and image, by predicted IoU; more hide the picture."""


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw some images, one PNG each: the boxes of every source side by side.

    Args:
        out: The stage's output folder.
        split: Where the images are.
        ids: Which images; those without an entry are passed over.
        folder: Where the pictures go.
    """
    table = read_table(out / "proposals.h5", PROPOSALS)
    paths = []
    for image_id in ids:
        if image_id not in table:
            continue
        rows = table.rows(image_id)
        image, factor = enlarged(load_image(split.image_path(image_id)), 360)
        boxes = rows_to_boxes(rows) * factor
        pictures, titles = [], []
        for name, bit in SOURCE_BITS.items():
            found = np.flatnonzero(rows["source"] & bit)
            # The first box is drawn on top.
            best = found[np.argsort(-rows["predicted_iou"][found], kind="stable")][:BOXES_DRAWN]
            pictures.append(draw_boxes(image, boxes[best], SOURCE_COLORS[name], thickness=1))
            titles.append(f"{name}: {len(found)}")
        paths.append(folder / f"{image_id}.png")
        save_png(paths[-1], contact_sheet(pictures, columns=4, titles=titles))
    return paths
