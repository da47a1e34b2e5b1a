"""A folder of images with a CSV of tags: ``file_name,tags`` with tags separated by ``;`` or ``|``.

The id of an image is its path below the image folder without the ending, ``/`` written as ``__``. Test
subsets need no tags, nor even a CSV: without one, every image of the folder belongs to the split.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.core.datasets.coco import image_folder
from stages.core.datasets.layouts import Dataset, Subset
from stages.core.datasets.split import ListedImage, Listing
from stages.core.datasets.voc import IMAGE_SUFFIXES, existing_folder, unknown_class
from stages.core.errors import MissingInputError, SchemaError, did_you_mean


@dataclass(frozen=True)
class Row:
    """One line of the CSV; ``tags`` is None when the file has no such column."""

    file_name: str
    tags: tuple[str, ...] | None


def read_folder(dataset: Dataset, subset: Subset, *, train: bool) -> Listing:
    """List a subset, with tags on a train split.

    Raises:
        MissingInputError: the CSV or the image folder does not exist, or no class can be learned.
        SchemaError: malformed CSV, repeated file, or a tag that is not declared.
    """
    classes = class_names(dataset)
    class_index = {name: i for i, name in enumerate(classes)}
    if subset.index is None:
        folder = existing_folder(subset.image_folders)
        rows = [Row(name, None) for name in _images_below(folder)]
    else:
        rows = read_rows(subset.index, tags_needed=train)
        folder = image_folder(subset.image_folders, [row.file_name for row in rows])
    by_id = _by_id(rows, subset.index or folder)
    images = []
    for number, (image_id, row) in enumerate(sorted(by_id.items()), start=1):
        tags: set[int] = set()
        for tag in row.tags or () if train else ():
            if tag not in class_index:
                raise unknown_class(tag, classes, subset.index or folder)
            tags.add(class_index[tag])
        images.append(ListedImage(image_id, number, row.file_name, tuple(sorted(tags))))
    return Listing(classes, tuple(range(1, len(classes) + 1)), folder, tuple(images))


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """Declared classes, else the sorted tags of all the data set's train CSVs.

    Raises:
        MissingInputError: neither is there.
    """
    if dataset.classes is not None:
        return dataset.classes
    names: set[str] = set()
    for subset in dataset.subsets.values():
        if subset.role == "train" and subset.index is not None:
            names.update(tag for row in read_rows(subset.index, tags_needed=True) for tag in row.tags or ())
    if not names:
        raise MissingInputError(
            "no class can be learned: no train CSV holds a tag",
            where=dataset.root,
            hint="fill the column 'tags' of a train CSV, or declare 'classes:' in dataset.yaml",
        )
    return tuple(sorted(names))


def read_rows(path: Path, *, tags_needed: bool) -> list[Row]:
    """Read the CSV (RFC 4180 quoting, UTF-8 with or without byte order mark, any line ends).

    Raises:
        MissingInputError: no such file.
        SchemaError: not UTF-8, bad quoting, a missing column, or a row of another length (with its line).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingInputError("the CSV of tags does not exist", where=path) from error
    except UnicodeDecodeError as error:
        raise SchemaError(f"the CSV is not UTF-8 text ({error})", where=path) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        columns = _columns(header, tags_needed, path)
        for cells in reader:
            if cells:
                rows.append(_row(cells, header, columns, reader.line_num, path))
    except csv.Error as error:
        raise SchemaError(f"line {reader.line_num}: bad CSV ({error})", where=path) from error
    return rows


def _columns(header: list[str], tags_needed: bool, path: Path) -> tuple[int, int | None]:
    for name in ("file_name", *(("tags",) if tags_needed else ())):
        if name not in header:
            raise SchemaError(
                f"the first line has no column '{name}'",
                where=path,
                hint=f"begin the file with the line file_name,tags ({did_you_mean(name, header)})",
            )
    return header.index("file_name"), header.index("tags") if "tags" in header else None


def _row(cells: list[str], header: list[str], columns: tuple[int, int | None], line: int, path: Path) -> Row:
    if len(cells) != len(header):
        raise SchemaError(
            f"line {line} has {len(cells)} columns, the first line {len(header)}",
            where=path,
            hint="separate tags with ; or |, and put names that contain a comma in double quotes",
        )
    file_name = cells[columns[0]].strip()
    parts = PurePosixPath(file_name)
    if not file_name or parts.is_absolute() or ".." in parts.parts:
        raise SchemaError(f"line {line}: '{file_name}' is not a file name below the image folder", where=path)
    if columns[1] is None:
        return Row(file_name, None)
    tags = (tag.strip() for tag in re.split(r"[;|]", cells[columns[1]]))
    return Row(file_name, tuple(tag for tag in tags if tag))


def _by_id(rows: Iterable[Row], where: Path) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        image_id = str(PurePosixPath(row.file_name).with_suffix("")).replace("/", "__")
        if image_id in found:
            first = found[image_id].file_name
            what = "is listed twice" if first == row.file_name else f"and '{first}' have the same id"
            raise SchemaError(f"'{row.file_name}' {what}", where=where, hint="remove or rename one of them")
        found[image_id] = row
    return found


def _images_below(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path.relative_to(folder).as_posix() for path in files)
