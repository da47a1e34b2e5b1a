"""COCO JSON in and out: results (detections, segmentations) and data sets of pseudo ground truth.

The single home of COCO's xywh for artifacts: in memory boxes are half-open xyxy pixels. Image ids in
the files are the integers of ``split.coco_id``; category ids those of ``split.category_ids``, so that
any COCO tool reads them beside the data set's own annotations.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.coco_fields import box_xywh, mask_of, score_of
from stages.core.artifacts.files import read_json, write_json
from stages.core.errors import SchemaError
from stages.core.structures.detections import Detections
from stages.core.structures.rle import RLE, rle_area

Entry = dict[str, Any]
"""One result or annotation of a file."""


_AGAIN = "correct the file, or make it again"


class LabelSpace(Protocol):
    """What this module needs of a split."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def category_ids(self) -> tuple[int, ...]: ...
    @property
    def ids(self) -> tuple[str, ...]: ...
    def coco_id(self, image_id: str) -> int: ...
    def id_of(self, coco_id: int) -> str: ...
    def file_name(self, image_id: str) -> str: ...


def _number(value: float, digits: int) -> float:
    # Rounding keeps the files small and equal across platforms that differ in the last bit.
    return round(float(value), digits)


def _xywh(box: NDArray[np.float32]) -> list[float]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return [_number(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]


def write_results(path: Path, split: LabelSpace, detections: Mapping[str, Detections]) -> None:
    """Write COCO results JSON: images in the order of the split, boxes in the order given.

    Args:
        path: Output file.
        split: Gives integer image ids and category ids.
        detections: Image id -> boxes; images without an entry have no results.
    """
    results: list[Entry] = []
    for image_id in split.ids:
        found = detections.get(image_id, Detections.empty())
        results += [_result(split, split.coco_id(image_id), found, row) for row in range(len(found))]
    write_json(path, results)


def _result(split: LabelSpace, image: int, found: Detections, row: int) -> Entry:
    entry: Entry = {
        "image_id": image,
        "category_id": split.category_ids[int(found.classes[row])],
        "bbox": _xywh(found.boxes_xyxy[row]),
        "score": _number(found.scores[row], 6),
    }
    return entry if found.masks is None else entry | {"segmentation": found.masks[row]}


def read_results(path: Path, split: LabelSpace) -> dict[str, Detections]:
    """Read COCO results JSON.

    Returns:
        Image id -> boxes, for every image of the split (empty where the file has none). Results of
        images outside a limited split are an error, as are unknown categories.

    Raises:
        SchemaError: not a list of results, an unknown image or category, or a box, score or mask that is none.
    """
    loaded = read_json(path)
    if not isinstance(loaded, list):
        raise SchemaError("expected a list of COCO results", where=path)
    class_of = {category: i for i, category in enumerate(split.category_ids)}
    grouped: dict[str, list[_Row]] = {image_id: [] for image_id in split.ids}
    for position, entry in enumerate(loaded):
        what = f"result {position}"
        image_id = _image_of(entry, "image_id", split, grouped, path, what)
        if (number := _integer(entry, "category_id")) not in class_of:
            raise SchemaError(
                f"{what} has category {entry.get('category_id')!r}, unknown to split {split.name}",
                where=path,
                hint="use detections made for this data set's class list",
            )
        try:
            row = _Row(box_xywh(entry), class_of[number], score_of(entry), _result_mask(entry))
        except ValueError as error:
            raise SchemaError(f"{what} {error}", where=path, hint=_AGAIN) from error
        grouped[image_id].append(row)
    return {image_id: _detections(rows) for image_id, rows in grouped.items()}


class _Row(NamedTuple):
    xywh: tuple[float, float, float, float]
    class_index: int
    score: float
    mask: RLE | None


def _integer(entry: Entry, key: str) -> int | None:
    """Return a field that must be an integer, None if it is not."""
    value = entry.get(key)
    return value if type(value) is int else None


def _image_of(entry: Any, key: str, split: LabelSpace, known: Container[str], path: Path, what: str) -> str:
    """Return the image that a field names."""
    number = _integer(entry, key) if isinstance(entry, dict) else None
    if number is None:
        raise SchemaError(f"{what} is not a COCO entry with an integer {key}", where=path, hint=_AGAIN)
    try:
        image_id = split.id_of(number)
    except KeyError:
        image_id = ""
    if image_id not in known:
        raise SchemaError(
            f"{what} names image {number}, which is not in split {split.name}",
            where=path,
            hint="use a file made for this split (and the same --limit)",
        )
    return image_id


def _result_mask(entry: Entry) -> RLE | None:
    """Return the mask of a result, which says itself how large its image is."""
    if not (segmentation := entry.get("segmentation")):
        return None
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)):
        raise ValueError("has a segmentation that is not run lengths with a size [height, width]")
    return mask_of(segmentation, *size)


def _detections(rows: Sequence[_Row]) -> Detections:
    if not rows:
        return Detections.empty()
    xywh = np.array([row.xywh for row in rows], dtype=np.float64)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)
    masks = [row.mask for row in rows if row.mask is not None]
    return Detections(
        boxes_xyxy=boxes,
        classes=np.array([row.class_index for row in rows], dtype=np.int64),
        scores=np.array([row.score for row in rows], dtype=np.float32),
        masks=masks if len(masks) == len(rows) else None,
    )


def write_dataset(
    path: Path,
    split: LabelSpace,
    boxes: Mapping[str, Detections],
    sizes: Mapping[str, tuple[int, int]],
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write pseudo ground truth as a COCO data set: area, ``iscrowd`` 0, annotation ids from 1, score kept.

    Args:
        path: Output file.
        split: Gives ids, file names and categories.
        boxes: Image id -> pseudo boxes; every image of ``sizes`` is listed, with or without boxes.
        sizes: Image id -> (height, width) in pixels.
        info: Free-form facts for the ``info`` section.
    """
    images: list[Entry] = []
    annotations: list[Entry] = []
    for image_id in (image_id for image_id in split.ids if image_id in sizes):
        height, width = sizes[image_id]
        number, name = split.coco_id(image_id), split.file_name(image_id)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        found = boxes.get(image_id, Detections.empty())
        for row in range(len(found)):
            annotations.append(_annotation(len(annotations) + 1, _result(split, number, found, row)))
    categories = [{"id": c, "name": n} for c, n in zip(split.category_ids, split.classes, strict=True)]
    write_json(
        path,
        {"info": dict(info or {}), "images": images, "annotations": annotations, "categories": categories},
    )


def _annotation(number: int, result: Entry) -> Entry:
    """Return a result as an annotation; ``area`` counts the mask's pixels, or is that of the box."""
    mask: RLE | None = result.get("segmentation")
    width, height = result["bbox"][2:]
    area = _number(width * height, 3) if mask is None else rle_area(mask)
    located: Entry = {key: result[key] for key in ("image_id", "category_id", "bbox")}
    kept: Entry = {key: result[key] for key in ("score", "segmentation") if key in result}
    return {"id": number, **located, "area": area, "iscrowd": 0, **kept}


def read_dataset(path: Path, split: LabelSpace) -> dict[str, Detections]:
    """Read pseudo ground truth: what :func:`write_dataset` wrote, or any COCO data set of the split's images.

    Classes are known by name: the file may number and order its categories as it likes. Polygons become run
    lengths; a box without a score has score 1.

    Returns:
        Image id -> boxes for every image the file lists and the split holds.

    Raises:
        SchemaError: not a COCO data set, other classes than the split's, an unknown image, or a box, score or mask
            that is none.
    """
    loaded = read_json(path)
    sections = ("images", "annotations", "categories")
    if not isinstance(loaded, dict) or not all(isinstance(loaded.get(name), list) for name in sections):
        raise SchemaError(f"expected a COCO data set with lists of {', '.join(sections)}", where=path)
    class_of = _classes_by_category(loaded["categories"], split, path)
    grouped: dict[str, list[_Row]] = {}
    sizes: dict[str, tuple[int | None, int | None]] = {}
    known = frozenset(split.ids)
    for position, image in enumerate(loaded["images"]):
        image_id = _image_of(image, "id", split, known, path, f"image {position}")
        grouped[image_id], sizes[image_id] = [], (_integer(image, "height"), _integer(image, "width"))
    for position, entry in enumerate(loaded["annotations"]):
        what = f"annotation {position}"
        image_id = _image_of(entry, "image_id", split, grouped, path, what)
        if (number := _integer(entry, "category_id")) not in class_of:
            raise SchemaError(
                f"{what} has unknown category {entry.get('category_id')!r}", where=path, hint=_AGAIN
            )
        try:
            mask = _annotation_mask(entry, *sizes[image_id])
            row = _Row(box_xywh(entry), class_of[number], score_of(entry, 1.0), mask)
        except ValueError as error:
            raise SchemaError(f"{what} {error}", where=path, hint=_AGAIN) from error
        grouped[image_id].append(row)
    return {image_id: _detections(rows) for image_id, rows in grouped.items()}


def _classes_by_category(categories: Sequence[Any], split: LabelSpace, path: Path) -> dict[int | None, int]:
    """Return the index of the class by the category id of the file; classes are known by name."""
    names = [category.get("name") if isinstance(category, dict) else None for category in categories]
    if sorted(map(str, names)) != sorted(split.classes):
        raise SchemaError(
            f"holds classes {names[:5]}…, split {split.name} has {list(split.classes)[:5]}…",
            where=path,
            hint="use pseudo ground truth made for this data set",
        )
    numbers = [_integer(category, "id") for category in categories]
    if None in numbers or len(set(numbers)) < len(numbers):
        raise SchemaError(
            f"its categories have the ids {numbers[:5]}…",
            where=path,
            hint="give each an integer of its own",
        )
    return {number: split.classes.index(str(name)) for number, name in zip(numbers, names, strict=True)}


def _annotation_mask(entry: Entry, height: int | None, width: int | None) -> RLE | None:
    """Return the mask of an annotation; only its image says how large that is."""
    if not (segmentation := entry.get("segmentation")):
        return None
    if height is None or width is None:
        raise ValueError("has a mask, but its image has no integer height and width")
    return mask_of(segmentation, height, width)
