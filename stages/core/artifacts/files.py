"""Files that appear whole or not at all: atomic writes, content hashes, and clear disk errors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from stages.core.faults import write_fault
from stages.core.text_files import JSON_MIB, parse_json, read_text

TEMPORARY = ".unfinished-"
"""In the names of files that are being written."""
NAME_LENGTH = 40
"""Characters of a file's name in that of its temporary; a name may have 255 bytes altogether."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that is renamed onto it when the block succeeds.

    The temporary name keeps the suffix, so that writers which look at it work; it is removed on failure.

    Raises:
        EnvironmentFault: the folder is read-only, or the disk is full.
    """
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.stem[:NAME_LENGTH]}{TEMPORARY}"
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        # mkstemp makes private files; an artifact on a shared cluster follows the user's umask.
        umask = os.umask(0)
        os.umask(umask)
        temporary = Path(name)
    try:
        with disk_faults(path):
            yield temporary
            # Last, since some writers replace the file by a private one of their own.
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn what any library raises for a file that cannot be written into :class:`EnvironmentFault`."""
    try:
        yield
    except Exception as error:
        fault = write_fault(error, path)
        if fault is None:
            raise
        raise fault from error


def remove_unfinished_writes(folder: Path) -> None:
    """Remove what writes that were killed have left in a folder; nobody may be writing there."""
    for path in folder.glob(f".*{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write JSON atomically, keys in the order given, no NaN or infinity."""
    separators = (",", ":") if indent is None else None
    write_text(path, json.dumps(value, indent=indent, separators=separators, allow_nan=False) + "\n")


def write_json_list(stream: TextIO, entries: Iterable[Any]) -> None:
    """Write entries as one JSON list, in the form of :func:`write_json`, without holding more than one of them."""
    stream.write("[")
    for number, entry in enumerate(entries):
        stream.write("," if number else "")
        stream.write(json.dumps(entry, separators=(",", ":"), allow_nan=False))
    stream.write("]")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        MissingInputError: no such file.
        InputError: no regular file, or too large.
        SchemaError: not UTF-8, not JSON, or nested so deep that no program wrote it; the message gives the position.
    """
    text = read_text(path, most_mib=JSON_MIB)
    return parse_json(text, path, hint="run the stage that writes it again")


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a folder's settings and weights."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors"))
    lines = "".join(f"{file.name} {file_sha256(file)}\n" for file in files if file.is_file())
    return hashlib.sha256(lines.encode()).hexdigest()
