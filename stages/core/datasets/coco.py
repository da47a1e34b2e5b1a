"""Tags from COCO-layout annotations: which categories the annotations of an image name.

Crowd annotations give tags: a tag says that the image *shows* the class, and a crowd of people plainly
does; calling such an image a negative example of "person" would be false. (VOC's ``difficult`` objects are
another matter: there the class itself cannot be told.) An image that is listed without an annotation shows none
of the classes, as does one whose only category is called "empty" (camera traps). Boxes and masks are not kept, nor
needed; they are read by ``evaluation/ground_truth/coco.py``.
"""

from __future__ import annotations

import functools
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stages.core.datasets.formats.file_names import image_folder, resolve_names
from stages.core.datasets.layouts import NEGATIVE_TAGS, Dataset, Subset
from stages.core.datasets.split import ListedImage, Listing
from stages.core.errors import MissingInputError, SchemaError, did_you_mean

Number = int | str
"""Id of an image: an integer in COCO, text in camera traps."""


@dataclass(frozen=True)
class CocoTags:
    """What tags need of a COCO file.

    Attributes:
        file_names: Image id -> file name.
        categories: Category id -> name, sorted by id; without those that are no classes.
        shown: Image id -> ids of the categories it shows; images without annotations are absent.
        notes: What a user should know of how the file was read.
    """

    file_names: Mapping[Number, str]
    categories: Mapping[int, str]
    shown: Mapping[Number, frozenset[int]]
    notes: tuple[str, ...] = ()


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
    names = [found.file_names[number] for number in sorted(found.file_names, key=str)]
    folder = image_folder(subset.image_folders, names)
    files, notes = resolve_names(names, folder)
    images = []
    for position, number in enumerate(sorted(found.file_names, key=str), start=1):
        shown = found.shown.get(number, frozenset()) if train else frozenset()
        tags = tuple(sorted(class_of[category] for category in shown if category in class_of))
        # Text ids of camera traps are no COCO ids: positions take their place.
        coco_id = number if isinstance(number, int) else position
        file_name = files[found.file_names[number]]
        images.append(ListedImage(str(number), coco_id, file_name, tags, negative=train and not tags))
    return Listing(classes, category_ids, folder, tuple(images), (*found.notes, *notes))


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
    if len({type(number) for number in file_names}) > 1:
        raise SchemaError("some image ids are integers, others text", where=path, hint="export it again")
    categories = category_names(document, path)
    if not categories:
        raise SchemaError("no category is declared", where=path, hint="export it with its categories")
    shown: dict[Number, set[int]] = {}
    for position, entry in enumerate(document["annotations"]):
        image, category = check_annotation(entry, position, file_names, categories, path)
        shown.setdefault(image, set()).add(category)
    used = frozenset().union(*shown.values())
    classes, notes = _classes_among(categories, document["categories"], used, path)
    return CocoTags(file_names, classes, {image: frozenset(s) for image, s in shown.items()}, notes)


def category_names(document: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Category id -> name, as text where a file has numbers.

    Raises:
        SchemaError: an entry without an integer id or a name, or an id used twice.
    """
    found: dict[int, str] = {}
    for position, entry in enumerate(document["categories"]):
        number = entry.get("id") if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if type(number) is not int or type(name) not in (int, str):
            raise SchemaError(
                f"category {position} lacks an integer 'id' or a text 'name'",
                where=path,
                hint="export it again",
            )
        if number in found:
            raise SchemaError(
                f"category id {number} is used twice", where=path, hint="give every one its own id"
            )
        found[number] = unicodedata.normalize("NFC", str(name)).strip()
    return found


def _classes_among(
    categories: Mapping[int, str], entries: Sequence[Mapping[str, Any]], used: frozenset[int], path: Path
) -> tuple[dict[int, str], tuple[str, ...]]:
    """Leave out what is no class: "empty" and the like, and unused categories that only group others.

    Roboflow writes a category 0 as the supercategory of all others, named after the project or like one of the classes.
    """
    groups = {str(entry.get("supercategory")) for entry in entries}
    notes = []
    classes: dict[int, str] = {}
    for number, name in sorted(categories.items()):
        twin = any(other == name for other_id, other in categories.items() if other_id != number)
        if name.lower() in NEGATIVE_TAGS:
            notes.append(f"category '{name}' means that an image shows none of the classes")
        elif number not in used and (twin or name in groups) and len(categories) > 1:
            notes.append(f"category {number} '{name}' has no annotation and groups others: it is no class")
        else:
            classes[number] = name
    names = list(classes.values())
    if twice := [name for name in names if names.count(name) > 1]:
        raise SchemaError(
            f"several categories that have annotations share the name '{twice[0]}'",
            where=path,
            hint="rename or join them",
        )
    return classes, tuple(notes)


def check_annotation(
    entry: Any, position: int, images: Mapping[Number, Any], categories: Mapping[int, Any], path: Path
) -> tuple[Number, int]:
    """Image id and category id of an annotation.

    Raises:
        SchemaError: not an object, or it names an image or category that is not listed.
    """
    if not isinstance(entry, dict):
        raise SchemaError(f"annotation {position} is not an object", where=path)
    known_ids: tuple[tuple[str, Mapping[Any, Any]], ...] = (("image_id", images), ("category_id", categories))
    for key, known in known_ids:
        # A list would be unhashable, and True would pass for 1.
        if type(entry.get(key)) not in (int, str) or entry[key] not in known:
            raise SchemaError(
                f"annotation {position} (id {entry.get('id')!r}) has {key} {entry.get(key)!r}, which is not listed",
                where=path,
            )
    return entry["image_id"], entry["category_id"]


def _by_id(entries: Sequence[Any], kind: str, key: str, path: Path) -> dict[Number, str]:
    found: dict[Number, str] = {}
    owner: dict[str, Number] = {}
    for position, entry in enumerate(entries):
        text = _file_name(entry) if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str) or text is None:
            raise SchemaError(
                f"{kind} {position} lacks an 'id' (integer or text) or a text '{key}'",
                where=path,
                hint="export it again",
            )
        number = entry["id"]
        if found.get(number) == text:
            continue  # the same entry again, as merged files have it
        if number in found:
            raise SchemaError(
                f"{kind} id {number} is used twice", where=path, hint="give every one its own id"
            )
        if text in owner:
            raise SchemaError(f"{kind} ids {owner[text]} and {number} share the {key} '{text}'", where=path)
        found[number], owner[text] = text, number
    return found


def _file_name(entry: Mapping[str, Any]) -> str | None:
    """The file of an image; some files have an address alone, whose last part it is."""
    name = entry.get("file_name")
    if name is None and isinstance(address := entry.get("coco_url"), str):
        name = PurePosixPath(address).name
    return name if isinstance(name, str) and name else None


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
