"""True boxes and masks of COCO-layout data sets. The single home of COCO's xywh for ground truth.

Polygons and both kinds of run lengths become compressed run lengths of the whole image. Boxes are those of
the file, also where a mask would give a slightly different one, because that is what COCO evaluates.
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from stages.core.datasets.catalog import SplitSource
from stages.core.datasets.coco import read_document
from stages.core.datasets.split import WeakSplit
from stages.core.errors import SchemaError
from stages.core.evaluation.truth import rle as run_lengths
from stages.core.evaluation.truth.types import RLE, ImageTruth

Annotation = dict[str, Any]


class CocoTruthReader:
    """Reads images of one COCO file, which is parsed once per process while it does not change.

    Raises:
        SchemaError: two annotations share an id.
    """

    def __init__(self, source: SplitSource, split: WeakSplit) -> None:
        assert source.subset.index is not None
        self._path = source.subset.index
        self._split = split
        self._class_of = {category: i for i, category in enumerate(split.category_ids)}
        state = self._path.stat()
        self._by_image = _by_image(os.fspath(self._path), state.st_mtime_ns, state.st_size)

    def read(self, image_id: str, height: int, width: int) -> ImageTruth:
        """True objects of an image of this size in pixels, in the order of the file.

        Raises:
            SchemaError: a box that is not four finite numbers with width and height >= 0, or a mask that
                is malformed or of another size.
        """
        found = self._by_image.get(self._split.coco_id(image_id), ())
        boxes = np.array([self._box(entry) for entry in found], dtype=np.float64).reshape(-1, 4)
        has_masks = all(entry.get("segmentation") for entry in found)
        masks = [self._mask(entry, height, width) for entry in found] if has_masks else None
        areas = [
            _area(entry, box, None if masks is None else masks[i])
            for i, (entry, box) in enumerate(zip(found, boxes, strict=True))
        ]
        return ImageTruth(
            width=width,
            height=height,
            boxes_xyxy=boxes,
            classes=np.array([self._class_of[entry["category_id"]] for entry in found], dtype=np.int64),
            difficult=np.array([bool(entry.get("ignore", 0)) for entry in found], dtype=np.bool_),
            crowd=np.array([bool(entry.get("iscrowd", 0)) for entry in found], dtype=np.bool_),
            masks=masks,
            areas=np.array(areas, dtype=np.float64),
        )

    def _box(self, entry: Annotation) -> tuple[float, float, float, float]:
        bbox = entry.get("bbox")
        if not (isinstance(bbox, list) and len(bbox) == 4 and all(_finite(value) for value in bbox)):
            raise self._error(entry, f"has bbox {bbox!r}, expected [x, y, width, height]")
        x, y, width, height = (float(value) for value in bbox)
        if width < 0 or height < 0:
            raise self._error(entry, f"has bbox {bbox!r} of negative width or height")
        return x, y, x + width, y + height

    def _mask(self, entry: Annotation, height: int, width: int) -> RLE:
        segmentation = entry["segmentation"]
        if isinstance(segmentation, list):
            for polygon in segmentation:
                self._check_polygon(entry, polygon)
            parts = coco_mask.frPyObjects(segmentation, height, width)
            return run_lengths.as_text(coco_mask.merge(parts))
        if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
            size = segmentation.get("size") if isinstance(segmentation, dict) else segmentation
            raise self._error(entry, f"has a mask of size {size!r}, but its image is [{height}, {width}]")
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            return RLE(size=[height, width], counts=counts)
        whole = isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)
        if not whole or sum(counts or []) != height * width:
            raise self._error(entry, f"has run lengths that do not add up to {height} x {width} pixels")
        return run_lengths.as_text(coco_mask.frPyObjects(segmentation, height, width))

    def _check_polygon(self, entry: Annotation, polygon: Any) -> None:
        # Four numbers would be taken for a box by pycocotools, an odd number for garbage.
        shaped = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        if not shaped or not all(_finite(value) for value in polygon):
            raise self._error(entry, "has a polygon that is not a list of at least three x, y pairs")

    def _error(self, entry: Annotation, what: str) -> SchemaError:
        return SchemaError(
            f"annotation {entry.get('id')!r} {what}", where=self._path, remedy="export it again"
        )


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _area(entry: Annotation, box_xyxy: np.ndarray[Any, np.dtype[np.float64]], mask: RLE | None) -> float:
    if _finite(entry.get("area")):
        return float(entry["area"])
    if mask is not None:
        return run_lengths.area(mask)
    return float((box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1]))


# One file only: the annotations of COCO train2017 take some gigabytes.
@functools.lru_cache(maxsize=1)
def _by_image(path: str, mtime_ns: int, size: int) -> dict[int, list[Annotation]]:
    grouped: dict[int, list[Annotation]] = {}
    seen: set[Any] = set()
    for position, entry in enumerate(read_document(Path(path))["annotations"]):
        number = entry.get("id")
        if type(number) is not int or number in seen:
            why = "lacks an integer id" if type(number) is not int else f"repeats the id {number}"
            raise SchemaError(f"annotation {position} {why}", where=path, remedy="give every one its own id")
        seen.add(number)
        grouped.setdefault(entry["image_id"], []).append(entry)
    return grouped
