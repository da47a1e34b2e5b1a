"""Files that appear whole or not at all: atomic writes, content hashes, and clear disk errors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core.errors import EnvironmentFault, MissingInputError, SchemaError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that is renamed onto it when the block succeeds.

    The temporary name keeps the suffix, so that writers which look at it work; it is removed on failure.

    Raises:
        EnvironmentFault: the folder is read-only, or the disk is full.
    """
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
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
    """Turn 'read-only', 'permission denied' and 'no space left' into :class:`EnvironmentFault`."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space, or write elsewhere with --run or --out, then --resume",
            errno.EDQUOT: "free some of your quota, or write elsewhere with --run or --out, then --resume",
            errno.EROFS: "write elsewhere with --run or --out",
            errno.EACCES: "write elsewhere with --run or --out, or ask for permission",
            errno.EPERM: "write elsewhere with --run or --out, or ask for permission",
            errno.ENOTDIR: "there is a file where a folder is needed: move it, or write elsewhere with --run or --out",
        }
        if error.errno not in hints:
            raise
        raise EnvironmentFault(
            f"cannot write ({os.strerror(error.errno or 0)})", where=path, hint=hints[error.errno]
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write JSON atomically, keys in the order given, no NaN or infinity."""
    separators = (",", ":") if indent is None else None
    write_text(path, json.dumps(value, indent=indent, separators=separators, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        MissingInputError: no such file.
        SchemaError: not UTF-8 or not JSON; the message gives the position.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError("no such file", where=path, hint="run the stage that writes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(
            f"not valid JSON ({error})", where=path, hint="run the stage that writes it again"
        ) from error


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
