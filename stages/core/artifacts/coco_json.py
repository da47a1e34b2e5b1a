"""COCO JSON in and out: results (detections, segmentations) and data sets of pseudo ground truth.

The single home of COCO's xywh for artifacts: in memory boxes are half-open xyxy pixels. Image ids in
the files are the integers of ``split.coco_id``; category ids those of ``split.category_ids``, so that
any COCO tool reads them beside the data set's own annotations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.files import read_json, write_json
from stages.core.errors import SchemaError


class RLE(TypedDict):
    """COCO compressed run lengths: ``size`` is [height, width], ``counts`` ASCII text."""

    size: list[int]
    counts: str


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


@dataclass
class Detections:
    """Boxes of one image.

    Attributes:
        boxes_xyxy: float32 (n, 4), half-open pixels.
        classes: int64 (n,), 0-based.
        scores: float32 (n,).
        masks: n run-length masks, or None.
    """

    boxes_xyxy: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: list[RLE] | None = None

    @classmethod
    def empty(cls) -> Detections:
        """No boxes."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self.scores)


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
    results: list[dict[str, Any]] = []
    for image_id in split.ids:
        found = detections.get(image_id)
        for i in range(0 if found is None else len(found)):
            assert found is not None
            entry: dict[str, Any] = {
                "image_id": split.coco_id(image_id),
                "category_id": split.category_ids[int(found.classes[i])],
                "bbox": _xywh(found.boxes_xyxy[i]),
                "score": _number(found.scores[i], 6),
            }
            if found.masks is not None:
                entry["segmentation"] = found.masks[i]
            results.append(entry)
    write_json(path, results)


def read_results(path: Path, split: LabelSpace) -> dict[str, Detections]:
    """Read COCO results JSON.

    Returns:
        Image id -> boxes, for every image of the split (empty where the file has none). Results of
        images outside a limited split are an error, as are unknown categories.

    Raises:
        SchemaError: not a list of results, or an unknown image or category.
    """
    loaded = read_json(path)
    if not isinstance(loaded, list):
        raise SchemaError("expected a list of COCO results", where=path)
    class_of = {category: i for i, category in enumerate(split.category_ids)}
    grouped: dict[str, list[dict[str, Any]]] = {image_id: [] for image_id in split.ids}
    for position, entry in enumerate(loaded):
        image_id = _image_of(entry, split, grouped, path, position)
        if _category(entry) not in class_of:
            raise SchemaError(
                f"result {position} has category {entry.get('category_id')!r}, unknown to split {split.name}",
                where=path,
                remedy="use detections made for this data set's class list",
            )
        grouped[image_id].append(entry)
    try:
        return {image_id: _detections(entries, class_of, path) for image_id, entries in grouped.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(f"a result lacks bbox or score ({error})", where=path) from error


def _image_of(entry: Any, split: LabelSpace, known: Mapping[str, object], path: Path, position: int) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), int):
        raise SchemaError(f"entry {position} is not a COCO result with an integer image_id", where=path)
    try:
        image_id = split.id_of(entry["image_id"])
    except KeyError:
        image_id = ""
    if image_id not in known:
        raise SchemaError(
            f"entry {position} names image {entry['image_id']}, which is not in split {split.name}",
            where=path,
            remedy="use a file made for this split (and the same --limit)",
        )
    return image_id


def _category(entry: Mapping[str, Any]) -> int | None:
    number = entry.get("category_id")
    return number if isinstance(number, int) else None


def _detections(
    entries: list[dict[str, Any]], class_of: Mapping[int, int], path: Path, *, scored: bool = True
) -> Detections:
    """Entries of one image as arrays; without `scored` a missing score is 1.

    Raises:
        SchemaError: a box or score that is none.
        KeyError, TypeError, ValueError: something is missing or of a wrong type.
    """
    if not entries:
        return Detections.empty()
    xywh = np.array([entry["bbox"] for entry in entries], dtype=np.float64)
    if xywh.shape[1:] != (4,):
        raise ValueError("a bbox has four numbers: x, y, width, height")
    scores = np.array([entry["score"] if scored else entry.get("score", 1.0) for entry in entries])
    good = np.isfinite(xywh).all(axis=1) & (xywh[:, 2:] >= 0).all(axis=1) & np.isfinite(scores.astype(float))
    if not good.all():
        bad = entries[int(np.argmin(good))]
        raise SchemaError(
            f"image {bad['image_id']}: bbox {bad['bbox']} with score {bad.get('score')} is no box "
            "(x, y, width, height, all finite, sides not negative)",
            where=path,
        )
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)
    with_masks = all("segmentation" in entry for entry in entries)
    return Detections(
        boxes_xyxy=boxes,
        classes=np.array([class_of[entry["category_id"]] for entry in entries], dtype=np.int64),
        scores=scores.astype(np.float32),
        masks=[entry["segmentation"] for entry in entries] if with_masks else None,
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
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in split.ids:
        if image_id not in sizes:
            continue
        height, width = sizes[image_id]
        number = split.coco_id(image_id)
        images.append(
            {"id": number, "file_name": split.file_name(image_id), "height": height, "width": width}
        )
        found = boxes.get(image_id, Detections.empty())
        for i in range(len(found)):
            bbox = _xywh(found.boxes_xyxy[i])
            entry: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": split.category_ids[int(found.classes[i])],
                "bbox": bbox,
                "area": _number(bbox[2] * bbox[3], 3),
                "iscrowd": 0,
                "score": _number(found.scores[i], 6),
            }
            if found.masks is not None:
                entry["segmentation"] = found.masks[i]
                entry["area"] = _rle_area(found.masks[i])
            annotations.append(entry)
    categories = [{"id": c, "name": n} for c, n in zip(split.category_ids, split.classes, strict=True)]
    write_json(
        path,
        {"info": dict(info or {}), "images": images, "annotations": annotations, "categories": categories},
    )


def _rle_area(rle: RLE) -> int:
    from pycocotools import mask as coco_mask

    return int(coco_mask.area({"size": rle["size"], "counts": rle["counts"].encode()}))


def _own_categories(categories: Any, split: LabelSpace, path: Path) -> dict[int, int]:
    """Category number of a file -> index of the split's class of that name."""
    entries = categories if isinstance(categories, list) else []
    found = [c.get("name") if isinstance(c, dict) else None for c in entries]
    if sorted(map(str, found)) != sorted(split.classes):
        raise SchemaError(
            f"holds classes {found[:5]}…, split {split.name} has {list(split.classes)[:5]}…",
            where=path,
            remedy="use pseudo ground truth made for this data set",
        )
    numbers = [c.get("id") for c in entries]
    if not all(type(n) is int for n in numbers) or len(set(numbers)) < len(numbers):
        raise SchemaError(
            f"its categories have the ids {numbers[:5]}…", where=path, remedy="give each its own"
        )
    return {n: split.classes.index(name) for n, name in zip(numbers, found, strict=True)}


def read_dataset(path: Path, split: LabelSpace) -> dict[str, Detections]:
    """Read pseudo ground truth written by :func:`write_dataset`.

    Returns:
        Image id -> boxes for every image the file lists and the split holds.

    Categories are known by their names: the file's numbers for them, and their order, are its own.

    Raises:
        SchemaError: not a COCO data set, other classes than the split's, or an unknown image.
    """
    loaded = read_json(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(loaded, dict) or not all(isinstance(loaded.get(part), list) for part in parts):
        raise SchemaError("expected a COCO data set with images, annotations and categories", where=path)
    class_of = _own_categories(loaded["categories"], split, path)
    known = dict.fromkeys(split.ids)
    grouped: dict[str, list[dict[str, Any]]] = {}
    for position, image in enumerate(loaded["images"]):
        if not isinstance(image, dict):
            raise SchemaError(f"entry {position} of images is no image", where=path)
        grouped[_image_of({"image_id": image.get("id")}, split, known, path, position)] = []
    for position, entry in enumerate(loaded["annotations"]):
        image_id = _image_of(entry, split, grouped, path, position)
        if _category(entry) not in class_of:
            raise SchemaError(
                f"annotation {position} has unknown category {entry.get('category_id')!r}", where=path
            )
        grouped[image_id].append(entry)
    try:
        return {i: _detections(entries, class_of, path, scored=False) for i, entries in grouped.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(f"an annotation lacks a bbox ({error})", where=path) from error
