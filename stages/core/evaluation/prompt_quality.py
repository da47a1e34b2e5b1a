"""How well prompting points fall on objects: precision of the points, and objects that got a point.

A point is right when it lies on an object of its class (of any class for class-agnostic points); it lies *on* an
object where the mask says so, or the box where there are no masks. Points on difficult objects or crowds are
right, but those objects need not be found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stages.core.artifacts.schemas import MAP_KINDS
from stages.core.artifacts.table import Table
from stages.core.errors import SchemaError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.matching import IntArray, check_images, ignored_objects, images_with_rows
from stages.core.evaluation.overlap import points_on_objects


@dataclass(frozen=True)
class PromptQuality:
    """Counts over a split.

    Attributes:
        right: (K,) points on an object of their class, by source (``MAP_KINDS``).
        points: (K,) all points.
        prompted: (K + 1,) counted objects with a point of the source that agrees with their class; the last
            entry is for all sources together.
        objects: counted objects, neither difficult nor crowd.
        images: images of the split.
    """

    right: IntArray
    points: IntArray
    prompted: IntArray
    objects: int
    images: int

    def precision(self, source: str) -> float:
        """Fraction of the points of a source that lie on an object; nan without points."""
        k = MAP_KINDS.index(source)
        return float(self.right[k] / self.points[k]) if self.points[k] else float("nan")

    def object_recall(self, source: str | None = None) -> float:
        """Fraction of objects with a point, of one source or of any; nan without objects."""
        k = len(MAP_KINDS) if source is None else MAP_KINDS.index(source)
        return float(self.prompted[k] / self.objects) if self.objects else float("nan")

    @property
    def points_per_image(self) -> float:
        """Mean over all images; nan without images."""
        return float(self.points.sum() / self.images) if self.images else float("nan")


def prompt_quality(prompts: Table, ground_truth: Mapping[str, ImageGroundTruth]) -> PromptQuality:
    """Judge the points of a ``prompts.h5`` table on every image of a split.

    Raises:
        SchemaError: points of an image the ground truth does not hold, or of an unknown source.
    """
    check_images(images_with_rows(prompts), ground_truth, "prompts")
    sources = prompts.columns["source"].astype(np.int64)
    if len(sources) and (sources.min() < 0 or sources.max() >= len(MAP_KINDS)):
        raise SchemaError(f"source outside 0..{len(MAP_KINDS) - 1}")
    right, points = np.zeros(len(MAP_KINDS), np.int64), np.zeros(len(MAP_KINDS), np.int64)
    prompted, objects = np.zeros(len(MAP_KINDS) + 1, np.int64), 0
    for image_id in sorted(ground_truth):
        true, rows = ground_truth[image_id], prompts.rows(image_id)
        counted = ~ignored_objects(true)
        objects += int(counted.sum())
        source, label = rows["source"].astype(np.int64), rows["class_index"].astype(np.int64)
        on = points_on_objects(rows["x"].astype(np.float64), rows["y"].astype(np.float64), true)
        on &= (label[:, None] == true.classes[None, :]) | (label[:, None] < 0)
        for k in range(len(MAP_KINDS)):
            of_source = on[source == k]
            right[k] += int(of_source.any(axis=1).sum())
            points[k] += len(of_source)
            prompted[k] += int((of_source.any(axis=0) & counted).sum())
        prompted[-1] += int((on.any(axis=0) & counted).sum())
    return PromptQuality(right, points, prompted, objects, len(ground_truth))
