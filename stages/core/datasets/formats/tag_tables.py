"""Tables of images and tags as people have them: CSV of any spreadsheet, one-hot columns, JSON lines.

What is told apart by looking: the encoding (UTF-8 or UTF-16 by byte order mark, UTF-8, else Windows-1252), the
delimiter (comma, semicolon, tab or vertical bar), the column of file names and that of tags by their usual headings,
else columns of 0 and 1, one per class.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.datasets.image_files import has_image_suffix
from stages.core.errors import MissingInputError, SchemaError, did_you_mean

FILE_HEADINGS = (
    "file_name", "filename", "file", "files", "image_name", "imagename", "image_file", "image_path", "imagepath",
    "file_path", "filepath", "path", "image", "images", "img", "image_id", "imageid", "image_url", "url", "id", "name",
)  # fmt: skip
"""Headings of the column of file names, preferred ones first; compared in lower case with _ for other characters."""

TAG_HEADINGS = (
    "tags", "tag", "labels", "label", "classes", "class", "categories", "category", "class_name", "classname",
    "label_name", "labelname", "category_name", "object", "objects", "choice", "choices", "species", "annotation",
)  # fmt: skip
"""Headings of the column of tags, preferred ones first."""

_TRUE, _FALSE = ("1", "1.0", "true"), ("0", "0.0", "false", "")
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class TagRow:
    """One line of a table.

    Attributes:
        file_name: As it is written there.
        tags: Words, among them those that are no tags; None when the table has none.
        line: Where it stands, from 1.
        none_set: Whether there is a column per class and none is set.
    """

    file_name: str
    tags: tuple[str, ...] | None
    line: int = 0
    none_set: bool = False


@dataclass(frozen=True)
class TagTable:
    """Rows, and what a user should know of how they were read."""

    rows: tuple[TagRow, ...]
    notes: tuple[str, ...] = ()


def read_table_of_tags(path: Path, *, tags_needed: bool, classes: Sequence[str] = ()) -> TagTable:
    """Read a table by its suffix: ``.jsonl`` is JSON lines, anything else delimited text.

    Args:
        path: The table.
        tags_needed: Whether a table without tags is an error.
        classes: Declared classes; a cell that is one of them is one tag, whatever it contains.

    Raises:
        MissingInputError: no such file.
        SchemaError: undecodable text, bad quoting, no header, no column of file names, or none of tags that are needed.
    """
    text, notes = _decoded(path)
    if path.suffix.lower() == ".jsonl":
        header, lines = _json_lines(text, path)
    else:
        header, lines = _delimited(text, path)
    return _interpret(header, lines, path, tags_needed, frozenset(classes), notes)


def split_words(cell: str, known: Iterable[str] = ()) -> tuple[str, ...]:
    """Take a cell of tags apart: ``cat;dog``, ``cat|dog``, ``cat, dog``, ``['cat', 'dog']``, ``["cat"]``.

    Args:
        cell: The cell.
        known: Names of classes; a cell that is one of them is not taken apart.
    """
    text = cell.strip()
    if text in known:
        return (text,)
    if text[:1] in "[({" and text[-1:] in "])}" and len(text) > 1:
        text = text[1:-1]
    separators = r"[;|]" if re.search(r"[;|]", text) else ","
    return tuple(_unquoted(word.strip()) for word in re.split(separators, text))


def _unquoted(word: str) -> str:
    quoted = len(word) > 1 and word[0] == word[-1] and word[0] in "'\""
    return word[1:-1].strip() if quoted else word


def _decoded(path: Path) -> tuple[str, list[str]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingInputError("the table of tags does not exist", where=path) from error
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding), []
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or b"\0" in content:
            raise SchemaError(
                f"not text of a known encoding ({error})", where=path, hint="save it as UTF-8"
            ) from error
    return content.decode("cp1252", errors="replace"), [
        "it is not UTF-8 and was read as Windows-1252 (Latin-1)"
    ]


def _delimited(text: str, path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    first = text.lstrip().splitlines()[0] if text.strip() else ""
    if first.lower().startswith("sep="):
        delimiter, text = first[4:5] or ",", text.partition(first)[2].lstrip("\r\n")
    else:
        delimiter = max(",;\t|", key=first.count)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t"
    )
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                lines.append((reader.line_num, stripped))
    except csv.Error as error:
        raise SchemaError(f"line {reader.line_num}: bad CSV ({error})", where=path) from error
    if not lines:
        raise SchemaError("the table is empty", where=path, hint=_HEADER)
    header = lines[0][1]
    _refuse_data_as_header(header, path)
    return header, [(number, _of_length(cells, header, number, path)) for number, cells in lines[1:]]


_HEADER = "begin the file with the line file_name,tags"


def _refuse_data_as_header(header: Sequence[str], path: Path) -> None:
    if any(has_image_suffix(cell) for cell in header):
        raise SchemaError(
            f"the first line, '{','.join(header)}', is an image and not the names of the columns",
            where=path,
            hint=_HEADER,
        )


def _of_length(cells: list[str], header: Sequence[str], line: int, path: Path) -> list[str]:
    while len(cells) > len(header) and not cells[-1]:
        cells = cells[:-1]  # a delimiter at the end of every line
    if len(cells) != len(header):
        raise SchemaError(
            f"line {line} has {len(cells)} columns, the first line {len(header)}",
            where=path,
            hint="separate tags with ; or |, and put names that contain a comma in double quotes",
        )
    return cells


def _json_lines(text: str, path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    entries: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"line {number}: not valid JSON ({error})", where=path) from error
        if not isinstance(entry, dict):
            raise SchemaError(f"line {number}: expected an object", where=path)
        entries.append((number, entry))
    header = list(dict.fromkeys(key for _, entry in entries for key in entry))
    return header, [(number, [_as_cell(entry.get(key)) for key in header]) for number, entry in entries]


def _as_cell(value: Any) -> str:
    """A JSON value as the cell of a CSV would hold it; an object of arrays gives its categories."""
    if isinstance(value, dict):
        value = next((value[k] for k in ("categories", "category", "labels", "label") if k in value), None)
    if isinstance(value, list):
        return ";".join(str(item) for item in value)
    return "" if value is None else str(value)


def _interpret(
    header: Sequence[str],
    lines: Sequence[tuple[int, list[str]]],
    path: Path,
    tags_needed: bool,
    classes: frozenset[str],
    notes: list[str],
) -> TagTable:
    names = [re.sub(r"[^a-z0-9]+", "_", heading.lower()).strip("_") for heading in header]
    files = _column(names, FILE_HEADINGS)
    if files is None:
        hint = f"{_HEADER} ({did_you_mean('file_name', header)})"
        raise SchemaError("no column of file names is known in the first line", where=path, hint=hint)
    tags = _column(names, TAG_HEADINGS)
    flags = [] if tags is not None else _flag_columns(header, lines, files)
    if tags is None and not flags and tags_needed:
        hint = f"call it 'tags', or write one column of 0 and 1 per class ({did_you_mean('tags', header)})"
        raise SchemaError("no column of tags is known in the first line", where=path, hint=hint)
    if header[files] != "file_name":
        notes = [*notes, f"file names are read from the column '{header[files]}'"]
    if tags is not None and header[tags] != "tags":
        notes = [*notes, f"tags are read from the column '{header[tags]}'"]
    if flags:
        notes = [*notes, f"tags are the columns of 0 and 1: {', '.join(header[i] for i in flags[:8])}"]
    rows = []
    for number, cells in lines:
        if not cells[files]:
            raise SchemaError(f"line {number}: there is no file name", where=path)
        if tags is not None:
            rows.append(TagRow(cells[files], (cells[tags],), number))
        elif flags:
            shown = tuple(header[i] for i in flags if cells[i].lower() in _TRUE)
            rows.append(TagRow(cells[files], shown, number, none_set=not shown))
        else:
            rows.append(TagRow(cells[files], None, number))
    if tags is not None:
        rows, joined = _taken_apart(rows, classes)
        notes = [*notes, *joined]
    return TagTable(tuple(rows), tuple(notes))


def _column(names: Sequence[str], headings: Sequence[str]) -> int | None:
    return next((names.index(heading) for heading in headings if heading in names), None)


def _flag_columns(header: Sequence[str], lines: Sequence[tuple[int, list[str]]], files: int) -> list[int]:
    """Columns whose every cell is 0 or 1, with a 1 somewhere or more than an index would have."""
    return [
        i
        for i, heading in enumerate(header)
        if i != files and heading and lines and all(cells[i].lower() in _TRUE + _FALSE for _, cells in lines)
    ]


def _taken_apart(rows: Sequence[TagRow], classes: frozenset[str]) -> tuple[list[TagRow], list[str]]:
    """Rows with one word per tag; words between blanks are tags where each also stands alone somewhere."""
    split = [TagRow(row.file_name, split_words((row.tags or ("",))[0], classes), row.line) for row in rows]
    alone = {word for row in split for word in row.tags or () if " " not in word}
    found, count = [], 0
    for row in split:
        words: list[str] = []
        for word in row.tags or ():
            parts = word.split()
            if len(parts) > 1 and word not in classes and alone.issuperset(parts):
                words += parts
                count += 1
            else:
                words.append(word)
        found.append(TagRow(row.file_name, tuple(words), row.line))
    return found, [f"in {count} lines tags are separated by blanks"] if count else []
