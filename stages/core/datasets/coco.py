"""Tags from COCO-layout annotations: which categories the annotations of an image name.

Crowd annotations give tags: a tag says that the image *shows* the class, and a crowd of people plainly
does; calling such an image a negative example of "person" would be false. (VOC's ``difficult`` objects are
another matter: there the class itself cannot be told.) Boxes and masks are not kept; they are read by
``evaluation/ground_truth/coco.py``.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stages.core.datasets.layouts import Dataset, Subset
from stages.core.datasets.split import ListedImage, Listing
from stages.core.datasets.voc import existing_folder
from stages.core.errors import MissingInputError, SchemaError, did_you_mean


@dataclass(frozen=True)
class CocoTags:
    """What tags need of a COCO file.

    Attributes:
        file_names: Image id -> file name.
        categories: Category id -> name, sorted by id.
        shown: Image id -> ids of the categories it shows; images without annotations are absent.
    """

    file_names: Mapping[int, str]
    categories: Mapping[int, str]
    shown: Mapping[int, frozenset[int]]


def read_coco(dataset: Dataset, subset: Subset, *, train: bool) -> Listing:
    """List a subset, with tags on a train split.

    Raises:
        MissingInputError: the JSON or every possible image folder is missing.
        SchemaError: malformed JSON, or not a COCO data set.
    """
    assert subset.index is not None
    found = read_tags(subset.index)
    category_ids, classes = class_list(found.categories, dataset.classes, subset.index)
    class_of = {category: i for i, category in enumerate(category_ids)}
    images = []
    for number in sorted(found.file_names, key=str):
        shown = found.shown.get(number, frozenset()) if train else frozenset()
        tags = tuple(sorted(class_of[category] for category in shown))
        images.append(
            ListedImage(str(number), number, found.file_names[number], tags, "it has no annotation")
        )
    folder = image_folder(subset.image_folders, [image.file_name or "" for image in images])
    return Listing(classes, category_ids, folder, tuple(images))


def read_tags(path: Path) -> CocoTags:
    """Images, categories and who shows what; parsed once per process while the file does not change.

    Raises:
        MissingInputError: no such file.
        SchemaError: malformed JSON (the message gives the position), or not a COCO data set.
    """
    try:
        state = path.stat()
    except FileNotFoundError as error:
        raise MissingInputError("the annotation file does not exist", where=path) from error
    return _read_tags(os.fspath(path), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _read_tags(path: str, mtime_ns: int, size: int) -> CocoTags:
    return tags_of(read_document(Path(path)), Path(path))


def read_document(path: Path) -> dict[str, Any]:
    """Parse a COCO file and check its outermost shape.

    Raises:
        MissingInputError: no such file.
        SchemaError: malformed JSON, or a section that is missing or not a list.
    """
    try:
        loaded = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingInputError("the annotation file does not exist", where=path) from error
    except (ValueError, RecursionError) as error:
        raise SchemaError(
            f"not valid JSON ({error})", where=path, hint="download or export it again"
        ) from error
    if not isinstance(loaded, dict):
        raise SchemaError(f"expected a COCO data set (an object), found {type(loaded).__name__}", where=path)
    loaded.setdefault("annotations", [])
    for section in ("images", "categories", "annotations"):
        if not isinstance(loaded.get(section), list):
            raise SchemaError(
                f"expected a COCO data set, but '{section}' is missing or not a list", where=path
            )
    return loaded


def tags_of(document: Mapping[str, Any], path: Path) -> CocoTags:
    """Reduce a document to what tags need.

    Raises:
        SchemaError: repeated image or category ids, file names or category names; ids that are not
            integers; an annotation of an image or category that is not listed; no category at all.
    """
    file_names = _by_id(document["images"], "image", "file_name", path)
    for number, name in file_names.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SchemaError(
                f"image {number} has file_name '{name}', which leaves the image folder", where=path
            )
    categories = _by_id(document["categories"], "category", "name", path)
    if not categories:
        raise SchemaError("no category is declared", where=path, hint="export it with its categories")
    shown: dict[int, set[int]] = {}
    for position, entry in enumerate(document["annotations"]):
        image, category = check_annotation(entry, position, file_names, categories, path)
        shown.setdefault(image, set()).add(category)
    return CocoTags(
        file_names, dict(sorted(categories.items())), {image: frozenset(s) for image, s in shown.items()}
    )


def check_annotation(
    entry: Any, position: int, images: Mapping[int, Any], categories: Mapping[int, Any], path: Path
) -> tuple[int, int]:
    """Image id and category id of an annotation.

    Raises:
        SchemaError: not an object, or it names an image or category that is not listed.
    """
    if not isinstance(entry, dict):
        raise SchemaError(f"annotation {position} is not an object", where=path)
    for key, known in (("image_id", images), ("category_id", categories)):
        # A list would be unhashable, and True would pass for 1.
        if type(entry.get(key)) is not int or entry[key] not in known:
            raise SchemaError(
                f"annotation {position} (id {entry.get('id')!r}) has {key} {entry.get(key)!r}, which is not listed",
                where=path,
            )
    return entry["image_id"], entry["category_id"]


def _by_id(entries: Sequence[Any], kind: str, key: str, path: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    owner: dict[str, int] = {}
    for position, entry in enumerate(entries):
        if (
            not isinstance(entry, dict)
            or type(entry.get("id")) is not int
            or not isinstance(entry.get(key), str)
        ):
            raise SchemaError(
                f"{kind} {position} lacks an integer 'id' or a text '{key}'",
                where=path,
                hint="export it again",
            )
        number, text = entry["id"], entry[key]
        if number in found:
            raise SchemaError(
                f"{kind} id {number} is used twice", where=path, hint="give every one its own id"
            )
        if text in owner:
            raise SchemaError(f"{kind} ids {owner[text]} and {number} share the {key} '{text}'", where=path)
        found[number], owner[text] = text, number
    return found


def class_list(
    categories: Mapping[int, str], declared: tuple[str, ...] | None, path: Path
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Category ids and class names in index order: by category id, or as declared.

    Raises:
        SchemaError: declared and listed names differ.
    """
    if declared is None:
        return tuple(categories), tuple(categories.values())
    id_of = {name: number for number, name in categories.items()}
    for name in declared:
        if name not in id_of:
            hint = did_you_mean(name, id_of)
            raise SchemaError(
                f"the declared class '{name}' is not one of its categories", where=path, hint=hint
            )
    for name in id_of:
        if name not in declared:
            raise SchemaError(
                f"category '{name}' is not one of the declared classes",
                where=path,
                hint=f"{did_you_mean(name, declared)} Otherwise add it to 'classes:' in dataset.yaml",
            )
    return tuple(id_of[name] for name in declared), declared


def image_folder(candidates: Sequence[Path], file_names: Sequence[str]) -> Path:
    """The folder that holds most of the first images listed; the earlier one on a tie.

    Raises:
        MissingInputError: none of the folders exists.
    """
    probe = file_names[:20]
    hits = [sum((folder / name).is_file() for name in probe) for folder in candidates]
    if not any(hits):
        return existing_folder(candidates)
    return candidates[hits.index(max(hits))]
