"""Tags from VOC-layout annotations: which classes the XML of an image names.

The tags of an image are the names of its objects. Objects marked ``difficult`` are left out, as is
customary in weakly supervised detection: their class cannot be told without context. Everything else in
the file (sizes, boxes, parts) is not looked at here; the boxes are read by ``evaluation/ground_truth/voc.py``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from stages.core.datasets.layouts import Dataset, Subset
from stages.core.datasets.safe_xml import parse_xml
from stages.core.datasets.split import ListedImage, Listing
from stages.core.errors import MissingInputError, SchemaError, did_you_mean

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2", ".avif")


class NamedObject(NamedTuple):
    """An object's class name and whether it is marked difficult."""

    name: str
    difficult: bool


def read_voc(dataset: Dataset, subset: Subset, *, train: bool, difficult_tags: bool = False) -> Listing:
    """List a subset, with tags on a train split.

    Args:
        dataset: The data set on disk.
        subset: Its subset.
        train: Whether tags are wanted; a test split's XML is not opened for them.
        difficult_tags: Count objects marked ``difficult`` as tags, too.

    Raises:
        MissingInputError: the list, the XML folder or the image folder does not exist.
        SchemaError: malformed list or XML, repeated id, or a class that is not declared.
    """
    assert subset.index is not None
    assert dataset.annotations is not None
    ids = read_ids(subset.index)
    classes = class_names(dataset)
    class_index = {name: i for i, name in enumerate(classes)}
    folder = existing_folder(subset.image_folders)
    files = _files_by_stem(folder)
    images = []
    for number, image_id in enumerate(ids, start=1):
        tags: tuple[int, ...] | None = ()
        untagged = ""
        if train:
            tags, untagged = _tags(dataset.annotations / f"{image_id}.xml", class_index, difficult_tags)
        images.append(ListedImage(image_id, number, files.get(image_id), tags, untagged))
    return Listing(classes, tuple(range(1, len(classes) + 1)), folder, tuple(images))


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """Declared classes, else the sorted names in *all* XML files, so that every split has the same list.

    Raises:
        MissingInputError: no declared classes and no XML to take them from.
        SchemaError: malformed XML.
    """
    if dataset.classes is not None:
        return dataset.classes
    assert dataset.annotations is not None
    files = sorted(dataset.annotations.glob("*.xml"))
    names = sorted({item.name for file in files for item in named_objects(file)})
    if not names:
        raise MissingInputError(
            f"no class can be learned from the {len(files)} XML files here",
            where=dataset.annotations,
            hint="put the annotations there, or declare 'classes:' in dataset.yaml",
        )
    return tuple(names)


def read_ids(list_file: Path) -> list[str]:
    """Sorted ids of an ``ImageSets`` list: one per line, blank lines skipped.

    The two-column lists of image and mask paths in which trainaug is published are understood as well.

    Raises:
        MissingInputError: no such file.
        SchemaError: not UTF-8, a repeated id, a path instead of an id, or further columns.
    """
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise MissingInputError("the list of image ids does not exist", where=list_file) from error
    except UnicodeDecodeError as error:
        raise SchemaError(f"the list of image ids is not UTF-8 text ({error})", where=list_file) from error
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image_id = _id_of_line(line, number, list_file)
        if image_id in line_of:
            raise SchemaError(
                f"id '{image_id}' is on line {line_of[image_id]} and again on line {number}",
                where=list_file,
                hint="remove one of them",
            )
        line_of[image_id] = number
    return sorted(line_of)


def _id_of_line(line: str, number: int, list_file: Path) -> str:
    first, *rest = line.split()
    if first.startswith("/JPEGImages/"):
        return Path(first).stem
    if rest:
        # Stems may contain blanks; VOC's per-class lists have -1, 0 or 1 behind the id.
        if len(rest) == 1 and rest[0] in ("-1", "0", "1"):
            raise SchemaError(
                f"line {number} has an id and a flag: this is a per-class list",
                where=list_file,
                hint="use the list without a class in its name",
            )
        first = line.strip()
    if "/" in first or "\\" in first:
        raise SchemaError(
            f"line {number}, '{first}', is a path; expected an id, that is a file name without its ending",
            where=list_file,
            hint="keep images and XML in one folder each",
        )
    return first


def existing_folder(candidates: Sequence[Path]) -> Path:
    """The first folder that exists.

    Raises:
        MissingInputError: none does.
    """
    for folder in candidates:
        if folder.is_dir():
            return folder
    hint = "put the images there, or say where they are with 'images:' in dataset.yaml"
    others = "".join(f", nor does {folder.name}" for folder in candidates[1:])
    raise MissingInputError(f"this folder of images does not exist{others}", where=candidates[0], hint=hint)


def named_objects(xml_file: Path) -> tuple[NamedObject, ...]:
    """Objects an XML file names; parsed once per process while the file does not change.

    Raises:
        FileNotFoundError: no such file.
        SchemaError: malformed XML, an object without a name, or a ``difficult`` that is neither 0 nor 1.
    """
    state = xml_file.stat()
    return _named_objects(os.fspath(xml_file), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=250_000)
def _named_objects(xml_file: str, mtime_ns: int, size: int) -> tuple[NamedObject, ...]:
    path = Path(xml_file)
    found = []
    # Only direct children: VOC 2012 nests <part><name>head</name> inside objects.
    for number, item in enumerate(parse_xml(path, "annotation").findall("object"), start=1):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise SchemaError(f"object {number} has no name", where=path)
        found.append(NamedObject(name, is_difficult(item.findtext("difficult"), number, path)))
    return tuple(found)


def is_difficult(text: str | None, number: int, path: Path) -> bool:
    """Read the ``difficult`` flag of object ``number``; absent or empty means no.

    Raises:
        SchemaError: neither 0 nor 1.
    """
    value = (text or "0").strip() or "0"
    if value not in ("0", "1"):
        raise SchemaError(f"object {number} has difficult = '{value}', expected 0 or 1", where=path)
    return value == "1"


def _tags(
    xml_file: Path, class_index: dict[str, int], difficult_tags: bool
) -> tuple[tuple[int, ...] | None, str]:
    """Class indices, and why there are none."""
    try:
        objects = named_objects(xml_file)
    except FileNotFoundError:
        return None, f"annotation file {xml_file.name} does not exist"
    for item in objects:
        if item.name not in class_index:
            raise unknown_class(item.name, class_index, xml_file)
    names = {item.name for item in objects if difficult_tags or not item.difficult}
    reason = "all its objects are marked difficult" if objects else "its annotation has no object"
    return tuple(sorted(class_index[name] for name in names)), reason


def unknown_class(name: str, classes: Iterable[str], where: Path) -> SchemaError:
    """The error for a class name that is not in the declared list."""
    return SchemaError(
        f"class '{name}' is not one of the data set's classes",
        where=where,
        hint=f"{did_you_mean(name, classes)} Otherwise add it to 'classes:' in dataset.yaml",
    )


def _files_by_stem(folder: Path) -> dict[str, str]:
    """File name of each image by its stem; of several, the first in the order of ``IMAGE_SUFFIXES``."""
    rank = {suffix: i for i, suffix in enumerate(IMAGE_SUFFIXES)}
    files = [path for path in folder.iterdir() if path.suffix.lower() in rank]
    # Later entries win: the preferred ending last, ties by name.
    files.sort(key=lambda path: (-rank[path.suffix.lower()], path.name))
    return {path.stem: path.name for path in files}
