"""Pictures of `prompt`: the points on the image, in the colour of their class, one picture per source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.core.artifacts.schemas import MAP_KINDS, PROMPTS
from stages.core.artifacts.table import read_table
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.viz.drawing import contact_sheet, draw_points, enlarged, save_png
from stages.core.viz.palette import class_color

SIDE = 400
NO_CLASS_COLOR = (160, 160, 160)


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw the points of some images, one PNG each.

    Args:
        out: the stage's output folder.
        split: where the images are.
        ids: which images; those the table does not hold are passed over.
        folder: where the pictures go.
    """
    prompts = read_table(out / "prompts.h5", PROMPTS)
    paths = []
    for image_id in ids:
        if image_id not in prompts:
            continue
        rows = prompts.rows(image_id)
        picture, factor = enlarged(load_image(split.image_path(image_id)), SIDE)
        pictures, titles = [], []
        for source, name in enumerate(MAP_KINDS):
            chosen = np.flatnonzero(rows["source"] == source)
            xy = np.stack([rows["x"][chosen], rows["y"][chosen]], axis=1) * factor
            labels = rows["class_index"][chosen].tolist()
            colors = [class_color(label) if label >= 0 else NO_CLASS_COLOR for label in labels]
            pictures.append(draw_points(picture, xy, colors))
            titles.append(f"{name}: {len(chosen)} points")
        paths.append(folder / f"{image_id}.png")
        save_png(paths[-1], contact_sheet(pictures, len(MAP_KINDS), titles=titles))
    return paths
