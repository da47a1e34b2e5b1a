"""Pictures of `cam`: for each class of an image its coarse, fine and mean cross map over the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.core.artifacts.cams import stored_map
from stages.core.artifacts.schemas import CAMS, MAP_KINDS
from stages.core.artifacts.table import Table, read_table
from stages.core.datasets.split import WeakSplit
from stages.core.viz.drawing import Picture, contact_sheet, overlay_map
from stages.core.viz.stage_pictures import draw_each

SIDE = 320


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw the maps of some images, one PNG each: a row per class, a column per kind.

    Args:
        out: the stage's output folder.
        split: where the images are.
        ids: which images; those without maps are skipped.
        folder: where the pictures go.
    """
    cams = read_table(out / "cams.h5", CAMS)
    mapped = [i for i in ids if i in cams and len(cams.rows(i)["kind"]) > 0]

    def render(image_id: str, picture: Picture, factor: float) -> Picture:
        return _sheet(cams, image_id, picture, split.classes)

    return draw_each(split, mapped, folder, render, SIDE)


def _sheet(cams: Table, image_id: str, picture: Picture, classes: Sequence[str]) -> Picture:
    rows = cams.rows(image_id)
    pictures: list[Picture] = []
    titles: list[str] = []
    for label in np.unique(rows["class_index"]).tolist():
        for kind, name in enumerate(MAP_KINDS):
            chosen = np.flatnonzero((rows["class_index"] == label) & (rows["kind"] == kind))
            maps = [stored_map(cams, rows, i, image_id) for i in chosen.tolist()]
            if maps:
                mean = np.mean(maps, axis=0)
                pictures.append(overlay_map(picture, mean / max(float(mean.max()), 1e-6)))
                titles.append(f"{classes[label]}: {name}")
    return contact_sheet(pictures, len(MAP_KINDS), titles=titles)
