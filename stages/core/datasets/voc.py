"""Tags from VOC-layout annotations: which classes the XML of an image names.

The tags of an image are the names of its objects. Objects marked ``difficult`` are left out, as is
customary in weakly supervised detection: their class cannot be told without context. A file without any object states
that its image shows none of the classes. XML lies in a folder of its own or beside the images. Everything else in
the file (sizes, boxes, parts) is not looked at here; the boxes are read by ``evaluation/ground_truth/voc.py``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree.ElementTree import Element

from stages.core.datasets.image_files import IMAGE_SUFFIXES, images_below
from stages.core.datasets.layouts import Dataset, Subset
from stages.core.datasets.safe_xml import parse_xml
from stages.core.datasets.split import ListedImage, Listing, existing_folder
from stages.core.errors import MissingInputError, SchemaError, did_you_mean


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
        SchemaError: malformed list, repeated id, or a class that is not declared.
    """
    folder = existing_folder(subset.image_folders)
    annotations = annotation_folder(dataset, subset)
    files = _files_by_stem(folder)
    stems = sorted(files) if subset.index is None else read_ids(subset.index)
    classes = class_names(dataset)
    class_index = {name: i for i, name in enumerate(classes)}
    images = []
    for number, stem in enumerate(stems, start=1):
        tags = _Tags(())
        if train:
            tags = _tags(annotation_file(annotations, files.get(stem, stem)), class_index, difficult_tags)
        images.append(
            ListedImage(
                stem.replace("/", "__"), number, files.get(stem), tags.classes, tags.reason, tags.negative
            )
        )
    return Listing(classes, tuple(range(1, len(classes) + 1)), folder, tuple(images))


def annotation_folder(dataset: Dataset, subset: Subset) -> Path:
    """The folder of XML files: the data set's, or that of the images where XML lies beside them."""
    folder = subset.annotations or dataset.annotations
    assert folder is not None
    return folder


def annotation_file(annotations: Path, image: str) -> Path:
    """The XML file of an image: the same path below the folder of annotations; ``.XML``, too."""
    path = annotations / Path(image).with_suffix(".xml")
    shouted = path.with_suffix(".XML")
    return shouted if shouted.is_file() and not path.is_file() else path


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """Declared classes, else the sorted names in the XML of *all* subsets, so that every split has the same list.

    XML that cannot be read brings no class; its image is left out, with the reason.

    Raises:
        MissingInputError: no declared classes and no XML to take them from.
    """
    if dataset.classes is not None:
        return dataset.classes
    names: set[str] = set()
    for subset in dataset.subsets.values():
        for path in _annotation_files(dataset, subset):
            with contextlib.suppress(SchemaError, OSError):
                names.update(item.name for item in named_objects(path))
    if not names:
        raise MissingInputError(
            "no class can be learned from the XML files of the images listed",
            where=dataset.annotations or dataset.root,
            hint="put the annotations there, or declare 'classes:' in dataset.yaml",
        )
    return tuple(sorted(names))


def _annotation_files(dataset: Dataset, subset: Subset) -> Iterator[Path]:
    annotations = annotation_folder(dataset, subset)
    if subset.index is not None:
        stems = read_ids(subset.index) if subset.index.is_file() else []
        yield from (annotation_file(annotations, f"{stem}.jpg") for stem in stems)
    else:
        for folder in subset.image_folders[:1]:
            yield from (annotation_file(annotations, name) for name in images_below(folder))


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
    if first.startswith("/") or "\\" in first or ".." in first.split("/"):
        raise SchemaError(
            f"line {number}, '{first}', is a path; expected an id, that is a file name without its ending",
            where=list_file,
            hint="write ids relative to the folders of images and XML",
        )
    return first


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
    for number, item in enumerate(object_elements(parse_xml(path, "annotation")), start=1):
        name = unicodedata.normalize("NFC", item.findtext("name") or "").strip()
        if not name:
            raise SchemaError(f"object {number} has no name", where=path)
        found.append(NamedObject(name, is_difficult(item.findtext("difficult"), number, path)))
    return tuple(found)


def object_elements(root: Element) -> list[Element]:
    """The objects of an annotation: direct children (VOC 2012 nests parts inside objects), or those of <objects>."""
    return root.findall("object") or root.findall("objects/object")


_DIFFICULT = {"": False, "0": False, "0.0": False, "false": False, "no": False, "unspecified": False,
              "1": True, "1.0": True, "true": True, "yes": True}  # fmt: skip


def is_difficult(text: str | None, number: int, path: Path) -> bool:
    """Read the ``difficult`` flag of object ``number``; absent, empty or "Unspecified" means no.

    Raises:
        SchemaError: neither yes nor no.
    """
    value = (text or "").strip()
    if value.lower() not in _DIFFICULT:
        raise SchemaError(f"object {number} has difficult = '{value}', expected 0 or 1", where=path)
    return _DIFFICULT[value.lower()]


class _Tags(NamedTuple):
    """Class indices, None where nothing says them; why there are none; whether the image is stated to show none."""

    classes: tuple[int, ...] | None
    reason: str = ""
    negative: bool = False


def _tags(xml_file: Path, class_index: dict[str, int], difficult_tags: bool) -> _Tags:
    try:
        objects = named_objects(xml_file)
    except FileNotFoundError:
        return _Tags(None, f"annotation file {xml_file.name} does not exist")
    except OSError as error:
        return _Tags(None, f"annotation file {xml_file.name} cannot be read ({error.strerror})")
    except SchemaError as error:
        return _Tags(None, f"annotation file {xml_file.name}: {error.what}")
    for item in objects:
        if item.name not in class_index:
            raise unknown_class(item.name, class_index, xml_file)
    names = {item.name for item in objects if difficult_tags or not item.difficult}
    tags = tuple(sorted(class_index[name] for name in names))
    return _Tags(tags, "all its objects are marked difficult", negative=not objects)


def unknown_class(name: str, classes: Iterable[str], where: Path) -> SchemaError:
    """The error for a class name that is not in the declared list."""
    return SchemaError(
        f"class '{name}' is not one of the data set's classes",
        where=where,
        hint=f"{did_you_mean(name, classes)} Otherwise add it to 'classes:' in dataset.yaml",
    )


def _files_by_stem(folder: Path) -> dict[str, str]:
    """Path of each image by the same without ending; of several, the first in the order of ``IMAGE_SUFFIXES``."""
    rank = {suffix: i for i, suffix in enumerate(IMAGE_SUFFIXES)}
    # Later entries win: the preferred ending last, ties by name.
    names = sorted(images_below(folder), key=lambda name: (-rank[PurePosixPath(name).suffix.lower()], name))
    return {str(PurePosixPath(name).with_suffix("")): name for name in names}
