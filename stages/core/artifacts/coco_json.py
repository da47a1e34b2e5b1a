"""COCO JSON in and out: results (detections, segmentations) and data sets of pseudo ground truth.

The single home of COCO's xywh for artifacts: in memory boxes are half-open xyxy pixels. Image ids in
the files are the integers of ``split.coco_id``; category ids those of ``split.category_ids``, so that
any COCO tool reads them beside the data set's own annotations.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.coco_fields import box_xywh, is_set, mask_of, score_of
from stages.core.artifacts.coco_matching import Number, match_images
from stages.core.artifacts.files import atomic_path, read_json, write_json_list
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
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        write_json_list(stream, _results(split, split.ids, detections))
        stream.write("\n")


def _results(split: LabelSpace, ids: Iterable[str], detections: Mapping[str, Detections]) -> Iterator[Entry]:
    """Results of some images, one after another: millions of them together take gigabytes."""
    for image_id in ids:
        found = detections.get(image_id, Detections.empty())
        for row in range(len(found)):
            yield _result(split, split.coco_id(image_id), found, row)


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
    listed = [image_id for image_id in split.ids if image_id in sizes]
    categories = [{"id": c, "name": n} for c, n in zip(split.category_ids, split.classes, strict=True)]
    sections = {
        "images": (_image(split, image_id, sizes[image_id]) for image_id in listed),
        "annotations": (
            _annotation(number, result) for number, result in enumerate(_results(split, listed, boxes), 1)
        ),
        "categories": categories,
    }
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write('{"info":' + json.dumps(dict(info or {}), separators=(",", ":"), allow_nan=False))
        for name, entries in sections.items():
            stream.write(f',"{name}":')
            write_json_list(stream, entries)
        stream.write("}\n")


def _image(split: LabelSpace, image_id: str, size: tuple[int, int]) -> Entry:
    number, name = split.coco_id(image_id), split.file_name(image_id)
    return {"id": number, "file_name": name, "height": size[0], "width": size[1]}


def _annotation(number: int, result: Entry) -> Entry:
    """Return a result as an annotation; ``area`` counts the mask's pixels, or is that of the box."""
    mask: RLE | None = result.get("segmentation")
    width, height = result["bbox"][2:]
    area = _number(width * height, 3) if mask is None else rle_area(mask)
    located: Entry = {key: result[key] for key in ("image_id", "category_id", "bbox")}
    kept: Entry = {key: result[key] for key in ("score", "segmentation") if key in result}
    return {"id": number, **located, "area": area, "iscrowd": 0, **kept}


@dataclass(frozen=True)
class ForeignBoxes:
    """Boxes of a COCO data set that are of a split's images and classes, and what else the file holds.

    Attributes:
        boxes: Image id -> boxes, for every image that the file lists and the split holds.
        unknown_files: Names of listed images that the split does not hold.
        ignored_classes: Names of categories that the split does not have.
        ignored_crowds: Annotations of crowds, which are no boxes of objects.
        sizes: Image id -> (height, width) that the file says, where it does.
        trusted: Ids of images whose boxes are those of people, as ``info`` says.
    """

    boxes: dict[str, Detections]
    unknown_files: tuple[str, ...] = ()
    ignored_classes: tuple[str, ...] = ()
    ignored_crowds: int = 0
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    trusted: frozenset[str] = frozenset()

    @property
    def complete(self) -> bool:
        """Whether everything in the file was taken."""
        return not (self.unknown_files or self.ignored_classes or self.ignored_crowds)

    def summary(self) -> str:
        """Say what was taken and what not: "61 boxes of 22 images; 3 unknown file names (a.jpg, ...)"."""
        parts = [f"{sum(map(len, self.boxes.values()))} boxes of {len(self.boxes)} images"]
        if self.unknown_files:
            more = ", ..." if len(self.unknown_files) > 1 else ""
            parts.append(f"{len(self.unknown_files)} unknown file names ({self.unknown_files[0]}{more})")
        if self.ignored_classes:
            parts.append(f"classes {', '.join(self.ignored_classes)} ignored")
        if self.ignored_crowds:
            parts.append(f"{self.ignored_crowds} crowds ignored")
        return "; ".join(parts)


def read_dataset(path: Path, split: LabelSpace) -> ForeignBoxes:
    """Read pseudo ground truth: what :func:`write_dataset` wrote, or any COCO data set of the split's images.

    Images are known by file name (:func:`match_images`) and classes by name: the file may number and order both as it
    likes. Polygons become run lengths; a box without a score has score 1.

    Raises:
        SchemaError: not a COCO data set, none of its images or classes is the split's, a file name that may be several
            images, or a box, score or mask that is none.
    """
    loaded = read_json(path)
    sections = ("images", "annotations", "categories")
    if not isinstance(loaded, dict) or not all(isinstance(loaded.get(name), list) for name in sections):
        raise SchemaError(f"expected a COCO data set with lists of {', '.join(sections)}", where=path)
    names = _category_names(loaded["categories"], path)
    if not set(split.classes) & set(names.values()):
        raise SchemaError(
            f"holds classes {list(names.values())[:5]}, split {split.name} has {list(split.classes)[:5]}",
            where=path,
            hint="use pseudo ground truth made for this data set; classes are matched by name",
        )
    matches = match_images(loaded["images"], split, path)
    sizes = {entry["id"]: (_integer(entry, "height"), _integer(entry, "width")) for entry in loaded["images"]}
    grouped: dict[str, list[_Row]] = {image_id: [] for image_id in matches.image_ids.values()}
    crowds = 0
    for position, entry in enumerate(loaded["annotations"]):
        what = f"annotation {position}"
        number, name = _image_and_class(entry, what, sizes, names, path)
        if number not in matches.image_ids or name not in split.classes:
            continue
        try:
            if is_set(entry, "iscrowd"):
                crowds += 1
                continue
            mask = _annotation_mask(entry, *sizes[number])
            row = _Row(box_xywh(entry), split.classes.index(name), score_of(entry, 1.0), mask)
        except ValueError as error:
            raise SchemaError(f"{what} {error}", where=path, hint=_AGAIN) from error
        grouped[matches.image_ids[number]].append(row)
    return ForeignBoxes(
        {image_id: _detections(rows) for image_id, rows in grouped.items()},
        tuple(matches.unknown.values()),
        tuple(sorted(set(names.values()) - set(split.classes))),
        crowds,
        {
            i: (h, w)
            for n, i in matches.image_ids.items()
            for h, w in [sizes[n]]
            if h is not None and w is not None
        },
        _trusted(loaded, matches.image_ids),
    )


def _trusted(document: Mapping[str, Any], image_ids: Mapping[Number, str]) -> frozenset[str]:
    """Return the images whose file names ``info.trusted`` lists."""
    info = document.get("info")
    names = info.get("trusted") if isinstance(info, dict) else None
    listed = set(map(str, names)) if isinstance(names, list) else set()
    return frozenset(
        image_ids[image["id"]]
        for image in document["images"]
        if image["id"] in image_ids and image["file_name"] in listed
    )


def _image_and_class(
    entry: Any, what: str, images: Container[Any], names: Mapping[int, str], path: Path
) -> tuple[Number, str]:
    """Return the id of the image in the file, and the name of the class."""
    if not isinstance(entry, dict) or not _is_one_of(entry.get("image_id"), images):
        raise SchemaError(f"{what} is not a COCO entry of a listed image", where=path, hint=_AGAIN)
    if not _is_one_of(entry.get("category_id"), names):
        raise SchemaError(
            f"{what} has unknown category {entry.get('category_id')!r}", where=path, hint=_AGAIN
        )
    return entry["image_id"], names[entry["category_id"]]


def _is_one_of(value: Any, known: Container[Any]) -> bool:
    # A list would be unhashable, and True would pass for 1.
    return type(value) in (int, str) and value in known


def _category_names(categories: Sequence[Any], path: Path) -> dict[int, str]:
    """Return the names of the file's categories by their ids."""
    names: dict[int, str] = {}
    for position, category in enumerate(categories):
        number = _integer(category, "id") if isinstance(category, dict) else None
        if number is None or number in names or not isinstance(category.get("name"), str):
            raise SchemaError(
                f"category {position} is {category!r}",
                where=path,
                hint="give each a name and an integer id of its own",
            )
        names[number] = category["name"]
    return names


def _annotation_mask(entry: Entry, height: int | None, width: int | None) -> RLE | None:
    """Return the mask of an annotation; only its image says how large that is."""
    if not (segmentation := entry.get("segmentation")):
        return None
    if height is None or width is None:
        raise ValueError("has a mask, but its image has no integer height and width")
    return mask_of(segmentation, height, width)
