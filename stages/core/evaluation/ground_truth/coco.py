"""True boxes and masks of COCO-layout data sets. The single home of COCO's xywh for ground truth.

Polygons and both kinds of run lengths become compressed run lengths of the whole image. Boxes are those of
the file, also where a mask would give a slightly different one, because that is what COCO evaluates.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.coco_fields import box_xywh, is_finite, is_set, mask_of
from stages.core.datasets.catalog import SplitSource
from stages.core.datasets.coco import read_document
from stages.core.datasets.split import WeakSplit
from stages.core.errors import SchemaError
from stages.core.evaluation.ground_truth.types import RLE, ImageGroundTruth
from stages.core.structures.rle import rle_area

Annotation = dict[str, Any]


class CocoGroundTruthReader:
    """Reads images of one COCO file, which is parsed once per process while it does not change.

    Raises:
        SchemaError: two annotations share an id.
    """

    def __init__(self, source: SplitSource, split: WeakSplit) -> None:
        assert source.subset.index is not None
        self._path = source.subset.index
        self._class_of = {category: i for i, category in enumerate(split.category_ids)}
        state = self._path.stat()
        self._by_image = _by_image(os.fspath(self._path), state.st_mtime_ns, state.st_size)

    def read(self, image_id: str, height: int, width: int) -> ImageGroundTruth:
        """True objects of an image of this size in pixels, in the order of the file.

        An object whose box is not four finite numbers with width and height >= 0 is left out; a mask that is malformed
        or of another size costs the image's masks. Both are among the flaws.
        """
        # Other categories are groups, "empty", or those that the split is not restricted to.
        found = [e for e in self._by_image.get(image_id, ()) if e["category_id"] in self._class_of]
        flaws: list[SchemaError] = []
        entries: list[Annotation] = []
        corners: list[tuple[float, float, float, float]] = []
        for entry in found:
            try:
                corners.append(self._box(entry))
                entries.append(entry)
            except SchemaError as error:
                flaws.append(error)
        left_out, found = len(flaws), entries
        boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
        masks: list[RLE] | None = None
        if all(entry.get("segmentation") for entry in found):
            try:
                masks = [self._mask(entry, height, width) for entry in found]
            except SchemaError as error:
                flaws.append(error)
        areas = [
            _area(entry, box, None if masks is None else masks[i])
            for i, (entry, box) in enumerate(zip(found, boxes, strict=True))
        ]
        return ImageGroundTruth(
            width=width,
            height=height,
            boxes_xyxy=boxes,
            classes=np.array([self._class_of[entry["category_id"]] for entry in found], dtype=np.int64),
            difficult=self._flags(found, "ignore"),
            crowd=self._flags(found, "iscrowd"),
            masks=masks,
            areas=np.array(areas, dtype=np.float64),
            flaws=tuple(flaws),
            left_out=left_out,
        )

    def _box(self, entry: Annotation) -> tuple[float, float, float, float]:
        try:
            x, y, width, height = box_xywh(entry)
        except ValueError as error:
            raise self._error(entry, str(error)) from error
        return x, y, x + width, y + height

    def _flags(self, entries: Sequence[Annotation], flag: str) -> NDArray[np.bool_]:
        values = []
        for entry in entries:
            try:
                values.append(is_set(entry, flag))
            except ValueError as error:
                raise self._error(entry, str(error)) from error
        return np.array(values, dtype=np.bool_)

    def _mask(self, entry: Annotation, height: int, width: int) -> RLE:
        try:
            return mask_of(entry["segmentation"], height, width)
        except ValueError as error:
            raise self._error(entry, str(error)) from error

    def _error(self, entry: Annotation, what: str) -> SchemaError:
        return SchemaError(f"annotation {entry.get('id')!r} {what}", where=self._path, hint="export it again")


def _area(entry: Annotation, box_xyxy: np.ndarray[Any, np.dtype[np.float64]], mask: RLE | None) -> float:
    if is_finite(entry.get("area")):
        return float(entry["area"])
    if mask is not None:
        return float(rle_area(mask))
    return float((box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1]))


# One file only: the annotations of COCO train2017 take some gigabytes.
@functools.lru_cache(maxsize=1)
def _by_image(path: str, mtime_ns: int, size: int) -> dict[str, list[Annotation]]:
    """Annotations by the text id of their image."""
    grouped: dict[str, list[Annotation]] = {}
    seen: set[Any] = set()
    for position, entry in enumerate(read_document(Path(path))["annotations"]):
        number = entry.get("id")
        if type(number) is not int or number in seen:
            why = "lacks an integer id" if type(number) is not int else f"repeats the id {number}"
            raise SchemaError(f"annotation {position} {why}", where=path, hint="give every one its own id")
        seen.add(number)
        grouped.setdefault(str(entry["image_id"]), []).append(entry)
    return grouped
