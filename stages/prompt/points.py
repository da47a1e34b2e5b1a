"""Prompt points of one image: peaks of every map (Algorithm 1), cross peaks thinned by clustering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.cams import stored_map
from stages.core.artifacts.schemas import MAP_KINDS
from stages.core.artifacts.table import ImageRows, Table
from stages.core.errors import SchemaError
from stages.core.ops.peaks import Map, Points, peaks, refine_subpixel
from stages.core.runtime.seeding import derive_seed
from stages.core.structures.columns import Column, Columns
from stages.prompt.clusters import Clusters, kmeans, merge
from stages.prompt.config import PromptConfig

CROSS = MAP_KINDS.index("cross")
NO_CLASS = -1


@dataclass(frozen=True)
class StoredMap:
    """One map of `cams.h5` with its labels; values (h, w) in [0, 1]."""

    class_index: int
    kind: int
    layer: int
    head: int
    values: Map


@dataclass(frozen=True, eq=False)
class Peaks(Columns):
    """Peak points of several maps.

    Attributes:
        points_xy: (n, 2) image pixels.
        scores: (n,) in [0, 1].
        labels: (n, 3) class, layer and head of the map.
    """

    points_xy: Annotated[Points, Column("float32", 2)]
    scores: Annotated[NDArray[np.float32], Column("float32")]
    labels: Annotated[NDArray[np.int64], Column("int64", 3)]

    @classmethod
    def empty(cls) -> Peaks:
        """No point."""
        return cls(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 3), np.int64))


@dataclass(frozen=True, eq=False)
class PointPrompts(Peaks):
    """Peaks, or what stands for several of them, as prompts.

    Attributes:
        source: (n,) index into `MAP_KINDS`.
        cluster: (n,) number of the cluster of cross peaks, -1 for coarse and fine.
    """

    source: Annotated[NDArray[np.int64], Column("int64")]
    cluster: Annotated[NDArray[np.int64], Column("int64")]

    @classmethod
    def of(cls, peaks: Peaks, kind: int, cluster: NDArray[np.int64]) -> PointPrompts:
        """Peaks of one kind of map."""
        return cls(peaks.points_xy, peaks.scores, peaks.labels, np.full(len(peaks), kind), cluster)

    def rows(self) -> dict[str, NDArray[Any]]:
        """Columns of `prompts.h5`."""
        return {
            "x": self.points_xy[:, 0],
            "y": self.points_xy[:, 1],
            "class_index": self.labels[:, 0],
            "score": self.scores,
            "source": self.source,
            "layer": self.labels[:, 1],
            "head": self.labels[:, 2],
            "cluster": self.cluster,
        }


def stored_maps(cams: Table, image_id: str) -> Iterator[StoredMap]:
    """Yield the maps of one image in file order.

    Raises:
        SchemaError: a map's values do not fit its grid, or are not finite.
    """
    rows = cams.rows(image_id)
    for i in range(len(rows["kind"])):
        values = stored_map(cams, rows, i, image_id)
        if not np.isfinite(values).all():
            raise SchemaError(f"image {image_id}: map {i} is not finite")
        label, kind, layer, head = (int(rows[k][i]) for k in ("class_index", "kind", "layer", "head"))
        yield StoredMap(label, kind, layer, head, values)


def map_peaks(values_HW: Map, size: tuple[int, int], config: PromptConfig, cross: bool) -> tuple[Points, Map]:
    """Return the peak points of one map in image pixels, strictly inside the image, and their values.

    Args:
        values_HW: the map; it covers the image exactly.
        size: (height, width) of the image.
        config: windows and thresholds.
        cross: whether the windows of cross maps apply.
    """
    window = config.cross_window_px if cross else config.window_px
    threshold = config.cross_peak_thresh if cross else config.peak_thresh
    height, width = size
    if config.resolution == "image":
        enlarged = np.asarray(
            cv2.resize(values_HW, (width, height), interpolation=cv2.INTER_LINEAR), np.float32
        )
        # Between cells a map does not reach the heights of its cells: the threshold refers to what is sought in.
        low, high = enlarged.min(), enlarged.max()
        normalised = (enlarged - low) / max(high - low, np.float32(np.finfo(np.float32).tiny))
        return peaks(normalised, window, threshold, config.max_peaks_per_map)
    rows, columns = values_HW.shape
    cell_x, cell_y = width / columns, height / rows
    # The largest odd number of cells that the window in pixels holds, one neighbour on each side at least.
    cells = max(3, 2 * int((window / min(cell_x, cell_y) - 1) // 2) + 1)
    points_xy, values = peaks(values_HW, cells, threshold, config.max_peaks_per_map)
    refined = refine_subpixel(values_HW, points_xy) * np.array([cell_x, cell_y], np.float32)
    limit = np.nextafter(np.array([width, height], np.float32), np.float32(0))
    return np.clip(refined, 0, limit).astype(np.float32), values


def image_points(cams: Table, image_id: str, config: PromptConfig, seed: int) -> ImageRows:
    """Return one image's rows of `prompts.h5`: coarse and fine peaks, then the points made of cross peaks.

    An image or class without peaks gives no point.
    """
    geometry = cams.image_row(image_id)
    size = (int(geometry["image_h"]), int(geometry["image_w"]))
    found: list[tuple[int, Peaks]] = []
    for stored in stored_maps(cams, image_id):
        points_xy, values = map_peaks(stored.values, size, config, stored.kind == CROSS)
        labels = np.tile(
            np.array([[stored.class_index, stored.layer, stored.head]], np.int64), (len(values), 1)
        )
        found.append((stored.kind, Peaks(points_xy, values, labels)))
    of_kind = [
        Peaks.cat([Peaks.empty(), *(p for k, p in found if k == kind)]) for kind in range(len(MAP_KINDS))
    ]
    parts = [
        PointPrompts.of(of_kind[kind], kind, np.full(len(of_kind[kind]), -1))
        for kind in (MAP_KINDS.index("coarse"), MAP_KINDS.index("fine"))
    ]
    parts.append(_cross_points(of_kind[CROSS], config, derive_seed(seed, "kmeans", image_id)))
    return ImageRows(PointPrompts.cat(parts).rows(), dict(geometry))


def _cross_points(cross: Peaks, config: PromptConfig, seed: int) -> PointPrompts:
    """Thin cross peaks; a cluster's number is the row's `cluster`."""
    if config.clustering == "none":
        return PointPrompts.of(cross, CROSS, np.arange(len(cross)))
    if config.clustering == "kmeans":
        return _clustered(kmeans(cross.points_xy, seed), cross, 0)
    parts, first = [PointPrompts.of(Peaks.empty(), CROSS, np.zeros(0, np.int64))], 0
    for label in np.unique(cross.labels[:, 0]).tolist():
        own = cross[cross.labels[:, 0] == label]
        clusters = merge(own.points_xy, own.scores, config.merge_radius_px, config.merge_min_peaks)
        parts.append(_clustered(clusters, own, first))
        first += len(clusters.scores)
    return PointPrompts.cat(parts)


def _clustered(clusters: Clusters, peaks_in: Peaks, first: int) -> PointPrompts:
    """Prompts of clusters; one that stands for a peak keeps that peak's class, layer and head."""
    labels = np.full((len(clusters.scores), 3), NO_CLASS, np.int64)
    known = clusters.origin >= 0
    labels[known] = peaks_in.labels[clusters.origin[known]]
    numbers = first + np.arange(len(clusters.scores))
    return PointPrompts.of(Peaks(clusters.points_xy, clusters.scores, labels), CROSS, numbers)
