"""Pictures of `prompt`: the points on the image, in the color of their class, one picture per source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.core.artifacts.schemas import MAP_KINDS, PROMPTS
from stages.core.artifacts.table import read_table
from stages.core.datasets.split import WeakSplit
from stages.core.viz.drawing import Picture, contact_sheet, draw_points
from stages.core.viz.palette import class_color
from stages.core.viz.stage_pictures import draw_each

SIDE = 400
NO_CLASS_COLOR = (160, 160, 160)


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw the points of some images, one PNG each.

    Args:
        out: the stage's output folder.
        split: where the images are.
        ids: which images; those the table does not hold are skipped.
        folder: where the pictures go.
    """
    prompts = read_table(out / "prompts.h5", PROMPTS)

    def render(image_id: str, picture: Picture, factor: float) -> Picture:
        rows = prompts.rows(image_id)
        pictures, titles = [], []
        for source, name in enumerate(MAP_KINDS):
            chosen = np.flatnonzero(rows["source"] == source)
            xy = np.stack([rows["x"][chosen], rows["y"][chosen]], axis=1) * factor
            labels = rows["class_index"][chosen].tolist()
            colors = [class_color(label) if label >= 0 else NO_CLASS_COLOR for label in labels]
            pictures.append(draw_points(picture, xy, colors))
            titles.append(f"{name}: {len(chosen)} points")
        return contact_sheet(pictures, len(MAP_KINDS), titles=titles)

    return draw_each(split, [i for i in ids if i in prompts], folder, render, SIDE)
