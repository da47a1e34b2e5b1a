"""One picture per stage for one image: what every artifact of a run says about it.

Reads the artifacts of the finished stages of one split; boxes and masks of the ground truth, if there are any,
are handed in by the report. Coordinates of artifacts are image pixels; pictures are drawn enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.cams import stored_map
from stages.core.artifacts.coco_json import read_dataset, read_results
from stages.core.artifacts.schemas import MAP_KINDS, SCHEMAS, SOURCE_BITS, rows_to_boxes
from stages.core.artifacts.table import Table, read_table
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.errors import WeakSamError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.registry import chain_specs
from stages.core.spec import OutputSpec
from stages.core.structures.detections import Detections
from stages.core.structures.rle import RLE, decode_masks
from stages.core.viz.drawing import (
    Picture,
    draw_boxes,
    draw_points,
    enlarged,
    overlay_map,
    overlay_masks,
)
from stages.core.viz.palette import SOURCE_COLORS, class_color

SIDE = 400
MAX_SHOWN = 12
MAX_CLASSES = 2
SHOWN_SHARE = 0.5
"""Detections are shown from this share of the image's best score on: one rule for every detector."""

READERS: dict[str, Callable[[Path, WeakSplit], dict[str, Detections]]] = {
    "detections": read_results,
    "segmentations": read_results,
    "pgt": lambda path, split: read_dataset(path, split).boxes,
}
"""Kind of artifact -> reader, for those that hold boxes."""


@dataclass(frozen=True)
class Panel:
    """One picture of the page.

    Attributes:
        stage: Stage that made it; ``image`` and ``ground truth`` for the two that no stage made.
        title: What it shows.
        caption: How much of it, in words.
        picture: (h, w, 3) uint8 RGB.
    """

    stage: str
    title: str
    caption: str
    picture: Picture


@dataclass
class SplitArtifacts:
    """The artifacts of one split, read once.

    Attributes:
        tables: Stage -> table, for cam, prompt and propose.
        boxes: (stage, output) -> image id -> boxes, in the order of the chain.
        problems: Artifacts that could not be read, one sentence each.
    """

    tables: dict[str, Table] = field(default_factory=dict)
    boxes: dict[tuple[str, OutputSpec], dict[str, Detections]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_artifacts(folders: Mapping[str, Path], split: WeakSplit) -> SplitArtifacts:
    """Read what finished stages wrote; a damaged file becomes a problem, not an error.

    Args:
        folders: Stage -> output folder of the stages that finished.
        split: The split they worked on, cut as they were.
    """
    found = SplitArtifacts()
    for stage in chain_specs():
        for output in stage.outputs if stage.name in folders else ():
            path = folders[stage.name] / output.file_name
            try:
                if output.kind in SCHEMAS:
                    found.tables[stage.name] = read_table(path, SCHEMAS[output.kind])
                elif output.kind in READERS and path.is_file():
                    found.boxes[stage.name, output] = READERS[output.kind](path, split)
            except WeakSamError as error:
                found.problems.append(f"{stage.name}/{split.name}/{output.file_name}: {error.what}")
    return found


def image_panels(
    artifacts: SplitArtifacts, split: WeakSplit, image_id: str, ground_truth: ImageGroundTruth | None
) -> list[Panel]:
    """The pictures of one image in the order of the chain.

    Raises:
        ImageError: the image cannot be decoded.
    """
    image, factor = enlarged(load_image(split.image_path(image_id)), SIDE)
    made = _Canvas(image, factor, split.classes)
    panels = [
        Panel(
            "image", "Image", f"{round(image.shape[1] / factor)} × {round(image.shape[0] / factor)} px", image
        )
    ]
    if "cam" in artifacts.tables:
        panels += _maps(made, artifacts.tables["cam"], image_id)
    if "prompt" in artifacts.tables:
        panels.append(_prompts(made, artifacts.tables["prompt"].rows(image_id)))
    if "propose" in artifacts.tables:
        panels.append(_proposals(made, artifacts.tables["propose"].rows(image_id)))
    for (stage, output), boxes in artifacts.boxes.items():
        panel = _pseudo if output.kind == "pgt" else _detections
        panels.append(panel(made, stage, output.title, boxes.get(image_id, Detections.empty())))
    if ground_truth is not None:
        panels.append(_ground_truth(made, ground_truth))
    return panels


@dataclass(frozen=True)
class _Canvas:
    """An image to draw on, by how much it was enlarged, and the names of classes."""

    image: Picture
    factor: float
    classes: tuple[str, ...]

    def with_boxes(self, found: Detections, labels: list[str]) -> Picture:
        picture = self.image
        colors = [class_color(int(c)) for c in found.classes]
        if found.masks:
            picture = overlay_masks(picture, self.masks(found.masks), colors)
        return draw_boxes(picture, found.boxes_xyxy * self.factor, colors, labels)

    def masks(self, rles: list[RLE]) -> NDArray[np.uint8]:
        height, width = rles[0]["size"]
        size = (self.image.shape[1], self.image.shape[0])
        decoded = decode_masks(rles, height, width)
        return np.stack([cv2.resize(m, size, interpolation=cv2.INTER_NEAREST) for m in decoded]).astype(
            np.uint8
        )


def _maps(canvas: _Canvas, table: Table, image_id: str) -> list[Panel]:
    rows, panels = table.rows(image_id), []
    classes = sorted({int(c) for c in rows["class_index"]})
    for kind, name in enumerate(MAP_KINDS):
        for index in classes[:MAX_CLASSES]:
            chosen = np.flatnonzero((rows["kind"] == kind) & (rows["class_index"] == index))
            if not len(chosen):
                continue
            values = _mean_map([stored_map(table, rows, i, image_id) for i in chosen.tolist()])
            caption = canvas.classes[index]
            caption += f", mean of {len(chosen)} layers and heads" if len(chosen) > 1 else ""
            if len(classes) > MAX_CLASSES and index == classes[MAX_CLASSES - 1]:
                caption += f"; {len(classes) - MAX_CLASSES} more not shown"
            panels.append(
                Panel("cam", f"{name.capitalize()} map", caption, overlay_map(canvas.image, values))
            )
    return panels or [Panel("cam", "Maps", "no class, no map", canvas.image)]


def _mean_map(maps: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    height, width = maps[0].shape
    same = [m if m.shape == (height, width) else cv2.resize(m, (width, height)) for m in maps]
    mean: NDArray[np.float32] = np.mean(np.stack(same), axis=0, dtype=np.float32)
    # A mean of normalised maps no longer reaches 1: stretch it for the eye.
    peak = float(mean.max())
    return mean / peak if peak > 0 else mean


def _prompts(canvas: _Canvas, rows: dict[str, NDArray[Any]]) -> Panel:
    xy = np.stack([rows["x"], rows["y"]], axis=1) * canvas.factor
    names = [MAP_KINDS[int(s)] for s in rows["source"]]
    # Many cross points would hide the few others: those lie on top.
    order = sorted(range(len(names)), key=lambda i: (MAP_KINDS.index(names[i]), -float(rows["score"][i])))
    picture = draw_points(canvas.image, xy[order], [SOURCE_COLORS[names[i]] for i in order], radius=4)
    counts = ", ".join(f"{names.count(k)} {k}" for k in MAP_KINDS if k in names)
    return Panel("prompt", "Point prompts", counts or "no point", picture)


def _proposals(canvas: _Canvas, rows: dict[str, NDArray[Any]]) -> Panel:
    boxes = rows_to_boxes(rows) * canvas.factor
    bits = rows["source"].astype(np.int64)
    # Prompted boxes on top of the grid's; a box found in several ways takes the rarer colour.
    names = [
        next((n for n in ("coarse", "fine", "cross") if b & SOURCE_BITS[n]), "grid") for b in bits.tolist()
    ]
    order = sorted(range(len(names)), key=lambda i: (names[i] == "grid", i))
    colors = [SOURCE_COLORS[names[i]] for i in order]
    picture = draw_boxes(canvas.image, boxes[order], colors, thickness=1, casing=False)
    counts = ", ".join(
        f"{int(((bits & bit) > 0).sum())} {name}" for name, bit in SOURCE_BITS.items() if (bits & bit).any()
    )
    return Panel("propose", "Proposals", f"{len(boxes)} boxes: {counts}" if counts else "no box", picture)


def strongest(found: Detections) -> Detections:
    """The detections worth showing, best first: at least half the image's best score, at most a dozen."""
    best = found.best_first()
    return best.reaching(SHOWN_SHARE * best.scores[0])[:MAX_SHOWN] if len(best) else best


def _detections(canvas: _Canvas, stage: str, title: str, found: Detections) -> Panel:
    shown = strongest(found)
    labels = [
        f"{canvas.classes[int(c)]} {s:.2f}" for c, s in zip(shown.classes, shown.scores.tolist(), strict=True)
    ]
    caption = f"{len(shown)} of {len(found)} shown" if len(found) else "no detection"
    return Panel(stage, title, caption, canvas.with_boxes(shown, labels))


def _pseudo(canvas: _Canvas, stage: str, title: str, found: Detections) -> Panel:
    labels = [canvas.classes[int(c)] for c in found.classes]
    noun = "box" if len(found) == 1 else "boxes"
    caption = f"{len(found)} {noun}" if len(found) else "empty"
    return Panel(stage, title, caption, canvas.with_boxes(found, labels))


def _ground_truth(canvas: _Canvas, ground_truth: ImageGroundTruth) -> Panel:
    objects = Detections(
        ground_truth.boxes_xyxy.astype(np.float32),
        ground_truth.classes.astype(np.int64),
        np.ones(len(ground_truth), np.float32),
        ground_truth.masks,
    )
    labels = [canvas.classes[int(c)] for c in ground_truth.classes]
    caption = f"{len(ground_truth)} object{'' if len(ground_truth) == 1 else 's'}; no stage saw this"
    return Panel("ground_truth", "Ground truth", caption, canvas.with_boxes(objects, labels))
