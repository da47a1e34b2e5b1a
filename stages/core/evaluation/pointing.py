"""Pointing accuracy of class activation maps: does a map's maximum lie on an object of its class?

The pointing game of Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016. A map is
enlarged bilinearly to the image; since interpolation never exceeds its nodes, the maximum of the enlarged map is at
the centre of its largest cell, ties going to the first cell in reading order. It must lie
on a mask of the class, or in a box where the data set has no masks.

Counted are all pairs of an image and a class that has a counted (neither difficult nor crowd) object in it; a
pair without a map is a miss, and so is a map that is flat or not finite. Maps of classes that the image does
not hold (wrong predictions on a test split) are not counted here, average precision is their measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.cams import stored_map
from stages.core.artifacts.schemas import MAP_KINDS
from stages.core.artifacts.table import Table
from stages.core.errors import SchemaError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.matching import (
    IntArray,
    check_images,
    class_mean,
    ignored_objects,
    images_with_rows,
)
from stages.core.evaluation.overlap import FloatArray, points_on_objects

CROSS = MAP_KINDS.index("cross")


@dataclass(frozen=True)
class Pointing:
    """Pointing accuracy.

    Attributes:
        hits: (K, C) pairs whose map points at an object, by kind (``MAP_KINDS``) and class. Where an image
            and class have several maps of a kind (cross: one per layer and head), their mean is judged.
        pairs: (C,) pairs of an image and a class it holds.
        cross_layers: Layer -> (hits, maps) of single cross maps of classes the image holds.
        maps_per_image: Mean number of maps.
    """

    hits: IntArray
    pairs: IntArray
    cross_layers: Mapping[int, tuple[int, int]]
    maps_per_image: float
    kinds: tuple[str, ...]

    def accuracy(self, kind: str) -> float:
        """Fraction of all pairs, in [0, 1]; nan when there is no pair."""
        total = int(self.pairs.sum())
        return float(self.hits[MAP_KINDS.index(kind)].sum() / total) if total else float("nan")

    def class_accuracy(self, kind: str) -> FloatArray:
        """Accuracy per class ``(C,)``; nan for classes without a pair."""
        hits = self.hits[MAP_KINDS.index(kind)]
        return np.where(self.pairs > 0, hits / np.maximum(self.pairs, 1), np.nan)

    def class_mean(self, kind: str) -> float:
        """Mean of :meth:`class_accuracy`."""
        return class_mean(self.class_accuracy(kind))


def pointing_accuracy(
    cams: Table, ground_truth: Mapping[str, ImageGroundTruth], num_classes: int
) -> Pointing:
    """Pointing accuracy of the maps of a ``cams.h5`` table on every image of a split.

    Raises:
        SchemaError: maps of an image the ground truth does not hold, of an unknown class or kind, or not of the
            size of their grid.
    """
    check_images(images_with_rows(cams), ground_truth, "maps")
    hits = np.zeros((len(MAP_KINDS), num_classes), dtype=np.int64)
    pairs = np.zeros(num_classes, dtype=np.int64)
    layers: dict[int, list[int]] = {}
    for image_id in sorted(ground_truth):
        true = ground_truth[image_id]
        present = np.unique(true.classes[~ignored_objects(true)])
        pairs[present] += 1
        rows = cams.rows(image_id)
        _check_rows(rows, image_id, num_classes)
        wanted = np.flatnonzero(np.isin(rows["class_index"], present))
        maps = [stored_map(cams, rows, i, image_id).astype(np.float64) for i in wanted.tolist()]
        for kind in range(len(MAP_KINDS)):
            for label in present.tolist():
                chosen = [
                    values
                    for i, values in zip(wanted, maps, strict=True)
                    if rows["kind"][i] == kind and rows["class_index"][i] == label
                ]
                hits[kind, label] += _points_at(_mean_map(chosen), label, true)
        for i, values in zip(wanted, maps, strict=True):
            if rows["kind"][i] == CROSS:
                tally = layers.setdefault(int(rows["layer"][i]), [0, 0])
                tally[0] += _points_at(values, int(rows["class_index"][i]), true)
                tally[1] += 1
    return Pointing(
        hits=hits,
        pairs=pairs,
        cross_layers={layer: (h, n) for layer, (h, n) in sorted(layers.items())},
        maps_per_image=cams.num_rows / len(ground_truth) if ground_truth else float("nan"),
        kinds=tuple(MAP_KINDS[k] for k in np.unique(cams.columns["kind"]).tolist()),
    )


def _check_rows(rows: Mapping[str, NDArray[np.generic]], image_id: str, num_classes: int) -> None:
    for column, end in (("class_index", num_classes), ("kind", len(MAP_KINDS))):
        values = rows[column].astype(np.int64)
        if len(values) and (values.min() < 0 or values.max() >= end):
            raise SchemaError(f"image {image_id}: {column} outside 0..{end - 1}")


def _mean_map(maps: list[FloatArray]) -> FloatArray | None:
    """Mean of maps on one grid; maps on other grids than the first are an error of the writer."""
    if not maps:
        return None
    if any(values.shape != maps[0].shape for values in maps):
        raise SchemaError("maps of one image, class and kind lie on different grids")
    mean: FloatArray = np.mean(maps, axis=0)
    return mean


def _points_at(values: FloatArray | None, label: int, true: ImageGroundTruth) -> bool:
    """Whether a map's maximum lies on an object of the class."""
    point = None if values is None else map_maximum(values, true.height, true.width)
    if point is None:
        return False
    on = points_on_objects(np.array([point[0]]), np.array([point[1]]), true)[0]
    return bool((on & (true.classes == label)).any())


def map_maximum(values_HW: FloatArray, image_h: int, image_w: int) -> tuple[float, float] | None:
    """Where, in image pixels (x, y), the map enlarged to the image has its maximum; None for a flat map."""
    if not np.isfinite(values_HW).all() or values_HW.max() <= values_HW.min():
        return None
    row, column = np.unravel_index(int(values_HW.argmax()), values_HW.shape)
    height, width = values_HW.shape
    return (float(column) + 0.5) * image_w / width, (float(row) + 0.5) * image_h / height
