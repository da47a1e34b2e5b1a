"""From grid and peak points to prompts: what is asked of the segmenter, and on whose behalf.

One prompt per grid point, one per peak, and (coarse and fine only) one multi-point prompt per class with all
its peaks. The list keeps the published order grid, coarse, fine, cross, each single before multi.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.schemas import MAP_KINDS, SOURCE_BITS
from stages.core.structures.columns import Column, Columns
from stages.propose.candidates import Candidates

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Prompts(Columns):
    """Prompts of one image, in order: foreground points, or a box.

    Attributes:
        points: One ``(k, 2)`` float32 array of x, y pixels per prompt; k = 0 for a box.
        source: ``(p,)`` int8, one of ``SOURCE_BITS``.
        class_index: ``(p,)`` int32, 0-based, -1 without a class.
        peak_score: ``(p,)`` float32, the best peak of the prompt; nan for the grid.
        boxes_xyxy: ``(p, 4)`` float32 pixels; used where there are no points.
    """

    points: Annotated[tuple[Array, ...], Column()]
    source: Annotated[NDArray[np.int8], Column("int8")]
    class_index: Annotated[NDArray[np.int32], Column("int32")]
    peak_score: Annotated[NDArray[np.float32], Column("float32")]
    boxes_xyxy: Annotated[NDArray[np.float32], Column("float32", 4)]


def box_prompts(found: Candidates) -> Prompts:
    """One prompt per candidate: its box, on behalf of whatever found it."""
    return Prompts(
        (np.zeros((0, 2), np.float32),) * len(found), found.source.numpy(), found.class_index.numpy(),
        found.peak_score.numpy(), found.boxes_xyxy.numpy(),
    )  # fmt: skip


def valid_points(rows: Mapping[str, Array], height: int, width: int) -> Array:
    """Which prompt rows can be used: finite, inside the image, of a known source; ``(n,)`` bool."""
    x, y = rows["x"], rows["y"]
    with np.errstate(invalid="ignore"):
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    known = (rows["source"] >= 0) & (rows["source"] < len(MAP_KINDS))
    return np.asarray(np.isfinite(x) & np.isfinite(y) & inside & known, dtype=bool)


def build_prompts(
    grid: Array, rows: Mapping[str, Array], sources: Sequence[str], *, class_prompts: bool
) -> Prompts:
    """Prompts of one image from its grid points and its (valid) rows of ``prompts.h5``.

    Args:
        grid: ``(g, 2)`` x, y in pixels.
        rows: Columns of ``PROMPTS``.
        sources: Kinds used, any of ``MAP_KINDS``.
        class_prompts: Add one prompt with all points of each class for coarse and fine.
    """
    points: list[Array] = list(grid.reshape(-1, 1, 2).astype(np.float32))
    tags: list[tuple[int, int, float]] = [(SOURCE_BITS["grid"], -1, np.nan)] * len(points)
    xy = np.stack([rows["x"], rows["y"]], axis=1).astype(np.float32)
    for kind, name in enumerate(MAP_KINDS):
        if name not in sources:
            continue
        members = np.flatnonzero(rows["source"] == kind)
        for group in _groups(rows, members, multi=class_prompts and name != "cross"):
            points.append(xy[group])
            score = float(np.max(rows["score"][group]))
            tags.append((SOURCE_BITS[name], int(rows["class_index"][group[0]]), score))
    bits, classes, scores = zip(*tags, strict=True) if tags else ((), (), ())
    return Prompts(
        tuple(points), np.array(bits, np.int8), np.array(classes, np.int32), np.array(scores, np.float32),
        np.zeros((len(points), 4), np.float32),
    )  # fmt: skip


def _groups(rows: Mapping[str, Array], members: Array, *, multi: bool) -> Iterator[Array]:
    """Row numbers of every prompt of one kind: each alone, then those of each class together."""
    yield from members.reshape(-1, 1)
    if multi:
        classes = rows["class_index"][members]
        for class_index in np.unique(classes[classes >= 0]):
            group = members[classes == class_index]
            if len(group) > 1:  # alone, it would only repeat the single-point prompt
                yield group


def batches(prompts: Prompts, size: int, among: Array) -> Iterator[Array]:
    """Numbers of the prompts ``among`` (``(p,)`` bool), at most ``size`` at a time, with equally many points.

    Equal counts need no padding points; boxes have none, and form batches of their own. Padding is not free in
    Segment Anything: every point labelled -1 is a token the others attend to, so a padded prompt would answer
    differently from the same prompt alone.
    """
    counts = np.array([len(p) for p in prompts.points], dtype=np.int64)
    for count in np.unique(counts[among]):
        members = np.flatnonzero((counts == count) & among)
        for start in range(0, len(members), size):
            yield members[start : start + size]
