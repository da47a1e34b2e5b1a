"""From files with tags, however they were written down, to the listing of a split.

Readers of formats give :class:`TaggedFile`; what is common to all of them is here: which words are no tags, which
mean that an image shows none of the classes, the class list, ids, and that one image has all tags of its entries.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from stages.core.datasets.layouts import NEGATIVE_TAGS, Dataset, Subset
from stages.core.datasets.split import ListedImage, Listing
from stages.core.errors import MissingInputError, SchemaError, did_you_mean

MISSING_TAGS = frozenset(
    {"", "nan", "none", "null", "na", "n/a", "<na>", "undefined", "unlabeled", "unlabelled"}
)
"""What spreadsheets and programs write where there is no tag, in lower case: the image is simply not tagged."""

MAX_CLASS_NAME = 100
"""Characters; a longer "tag" is a sentence, or a file read in the wrong way."""


@dataclass(frozen=True)
class TaggedFile:
    """One image as a format lists it.

    Attributes:
        file_name: Path below the image folder.
        tags: Names; empty where the image is not tagged; None where there is nothing to read tags from.
        negative: Whether it is stated that the image shows none of the classes.
        name: What the id is made of where that is not ``file_name``.
        untagged: Why there are no tags.
    """

    file_name: str
    tags: tuple[str, ...] | None
    negative: bool = False
    name: str = ""
    untagged: str = "it has no tag"


@dataclass(frozen=True)
class TaggedFolder:
    """What a format says of one subset.

    Attributes:
        folder: Where the images are.
        files: One entry per image, or several of one image.
        classes: The class list, where the format has one.
        notes: What a user should know of how it was read.
        where: The file that lists them, for messages.
    """

    folder: Path
    files: tuple[TaggedFile, ...]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    where: Path | None = None


Source = Callable[[Dataset, Subset], TaggedFolder]
"""Reads one subset of a format."""


def sort_tags(words: Iterable[str], negatives: Iterable[str] = NEGATIVE_TAGS) -> tuple[tuple[str, ...], bool]:
    """Tell tags from words that mean "not tagged" and "none of the classes".

    Args:
        words: Candidates, of one image.
        negatives: Words that mean "none of the classes", in lower case.

    Returns:
        The tags, in composed Unicode; whether the image is stated to show none of the classes.
    """
    names = [unicodedata.normalize("NFC", word).strip() for word in words]
    negatives = frozenset(negatives)
    tags = tuple(n for n in names if n.lower() not in MISSING_TAGS and n.lower() not in negatives)
    return tags, not tags and any(name.lower() in negatives for name in names)


def listing_of(dataset: Dataset, subset: Subset, source: Source, *, train: bool) -> Listing:
    """List a subset, with tags on a train split.

    The classes are those that ``dataset.yaml`` or the format declares, else the sorted tags of all train subsets.

    Raises:
        MissingInputError: a file or folder does not exist, or no class can be learned.
        SchemaError: what the format refuses, a tag that is not declared, or one that cannot be a class.
    """
    read = source(dataset, subset)
    classes = dataset.classes or read.classes or _learned_classes(dataset, subset, read, source)
    where = read.where or read.folder
    for name in classes:
        check_class_name(name, where)
    class_index = {name: i for i, name in enumerate(classes)}
    by_id, notes = _by_id(read.files, where)
    images = []
    for number, (image_id, file) in enumerate(sorted(by_id.items()), start=1):
        tags: tuple[int, ...] | None = None if file.tags is None and train else ()
        if train and file.tags:
            tags = tuple(sorted({_class_of(tag, class_index, where) for tag in file.tags}))
        images.append(ListedImage(image_id, number, file.file_name, tags, file.untagged, file.negative))
    numbers = tuple(range(1, len(classes) + 1))
    return Listing(tuple(classes), numbers, read.folder, tuple(images), (*read.notes, *notes))


def _learned_classes(dataset: Dataset, subset: Subset, read: TaggedFolder, source: Source) -> tuple[str, ...]:
    names: set[str] = set()
    for other in dataset.subsets.values():
        if other.role == "train":
            found = read if other is subset else source(dataset, other)
            names.update(tag for file in found.files for tag in file.tags or ())
    if not names:
        raise MissingInputError(
            "no class can be learned: no train subset holds a tag",
            where=dataset.root,
            hint="tag the images of a train subset, or declare 'classes:' in dataset.yaml",
        )
    return tuple(sorted(names))


def check_class_name(name: str, where: Path) -> None:
    """Refuse what cannot be a class.

    Raises:
        SchemaError: empty, over 100 characters, or with a line break or another control character.
    """
    why = ""
    if not name.strip():
        why = "is empty"
    elif len(name) > MAX_CLASS_NAME:
        why = f"has {len(name)} characters, at most {MAX_CLASS_NAME}"
    elif any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        why = "has a line break or another control character"
    if why:
        raise SchemaError(
            f"the class name {name[:40]!r} {why}", where=where, hint="is this really the file of tags?"
        )


def _class_of(tag: str, class_index: dict[str, int], where: Path) -> int:
    if tag not in class_index:
        raise SchemaError(
            f"class '{tag}' is not one of the data set's classes",
            where=where,
            hint=f"{did_you_mean(tag, class_index)} Otherwise add it to 'classes:' in dataset.yaml",
        )
    return class_index[tag]


def _by_id(files: Sequence[TaggedFile], where: Path) -> tuple[dict[str, TaggedFile], list[str]]:
    """Entries by id, those of one image joined, and a note on how many were."""
    found: dict[str, TaggedFile] = {}
    several: set[str] = set()
    for file in files:
        image_id = str(PurePosixPath(file.name or file.file_name).with_suffix("")).replace("/", "__")
        first = found.get(image_id)
        if first is None:
            found[image_id] = file
        elif first.file_name != file.file_name:
            raise SchemaError(
                f"'{file.file_name}' and '{first.file_name}' have the same id",
                where=where,
                hint="remove or rename one of them",
            )
        else:
            several.add(image_id)
            found[image_id] = _joined(first, file)
    notes = [f"{len(several)} images have several entries, whose tags are joined"] if several else []
    return found, notes


def _joined(first: TaggedFile, second: TaggedFile) -> TaggedFile:
    tags = tuple(dict.fromkeys((*(first.tags or ()), *(second.tags or ()))))
    known = first.tags is not None or second.tags is not None
    negative = (first.negative or second.negative) and not tags
    return replace(first, tags=tags if known else None, negative=negative)
