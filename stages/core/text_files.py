"""Guarded reading of text, YAML and JSON from anywhere: limits on size, depth and kind, errors with the file's name.

A file may be a pipe, a device or a folder, larger than the memory, nested a hundred thousand deep, or a few lines of
aliases that stand for a billion values. All of it ends as one error that names the file, and nothing is executed.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from stages.core.errors import InputError, MissingInputError, SchemaError, WeakSamError

SIZE_VARIABLE = "WEAKSAM_MAX_FILE_MIB"
"""Environment variable that raises the largest size of a text file, MiB."""
YAML_MIB, JSON_MIB = 16, 4096
MOST_LEVELS = 64
"""Levels of nesting that a YAML file may have; settings have three."""
MOST_VALUES = 200_000
"""Values of a YAML file, aliases written out."""


def check_file(path: Path, most_mib: int | None = None) -> None:
    """Refuse what cannot be read to its end: pipes, devices, sockets, folders, files that are too large.

    Args:
        path: Any path.
        most_mib: Largest size, MiB; None is any.

    Raises:
        MissingInputError: there is nothing.
        InputError: no regular file, a path that cannot be used, or too large.
    """
    try:
        state = path.stat()
    except FileNotFoundError as error:
        raise MissingInputError("no such file", where=_shown(path), hint="check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read ({reason})", where=_shown(path), hint="check the path") from error
    if not stat.S_ISREG(state.st_mode):
        raise InputError(f"is {_kind(state.st_mode)}", where=_shown(path), hint="give a regular file")
    most = None if most_mib is None else _limit(most_mib)
    if most is not None and state.st_size > most * 2**20:
        raise InputError(
            f"has {state.st_size / 2**20:.0f} MiB, more than {most}",
            where=_shown(path),
            hint=f"check the path, or raise the limit: {SIZE_VARIABLE}={state.st_size // 2**20 + 1}",
        )


def read_text(path: Path, *, kind: type[WeakSamError] = SchemaError, most_mib: int = YAML_MIB) -> str:
    """Read UTF-8 text, a byte order mark left out.

    Args:
        path: The file.
        kind: Raised where the content is at fault.
        most_mib: Largest size, MiB.

    Raises:
        MissingInputError, InputError: see :func:`check_file`, or no permission.
        WeakSamError: of `kind`: no UTF-8.
    """
    check_file(path, most_mib)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=_shown(path), hint="check its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise kind(f"not UTF-8 text ({error})", where=_shown(path), hint="save it as UTF-8") from error


def parse_yaml(
    text: str,
    where: str | Path,
    *,
    kind: type[WeakSamError] = SchemaError,
    loader: type[yaml.SafeLoader] = yaml.SafeLoader,
) -> Any:
    """Parse one YAML document of plain values.

    Args:
        text: The document.
        where: What messages call it.
        kind: Raised whatever is wrong.
        loader: A safe loader.

    Raises:
        WeakSamError: of `kind`: not YAML, values that are none, nested too deep, too many values once aliases are
            written out, an alias inside of itself, or characters that no text has.
    """
    try:
        reader = loader(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _check_nodes(node)
            return reader.construct_document(node)
        finally:
            reader.dispose()
    except RecursionError:
        raise kind("not usable YAML (nested too deep)", where=where, hint="write it flat") from None
    except yaml.YAMLError as error:
        raise kind(f"not valid YAML: {error}", where=where) from error
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        # The library's constructors of dates, numbers and binary values raise whatever they meet.
        raise kind(f"not valid YAML: a value that is none ({error})", where=where) from error


def parse_json(
    text: str | bytes, where: str | Path, *, kind: type[WeakSamError] = SchemaError, hint: str = ""
) -> Any:
    """Parse JSON.

    Raises:
        WeakSamError: of `kind`: not JSON, or nested too deep; the message gives the position.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise kind("not usable JSON (nested too deep)", where=where, hint=hint or None) from None
    except ValueError as error:  # also UnicodeDecodeError, and integers of thousands of digits
        raise kind(f"not valid JSON ({error})", where=where, hint=hint or None) from error


def _check_nodes(root: yaml.Node) -> None:
    """Count the values of a document with its aliases written out, without writing them out.

    Raises:
        ValueError: too many values, too deep, or a circle.
    """
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, levels: int, path: frozenset[int]) -> int:
        if id(node) in path:
            raise ValueError("an alias stands inside of itself")
        if levels > MOST_LEVELS:
            raise ValueError(f"more than {MOST_LEVELS} levels")
        if id(node) in sizes:
            return sizes[id(node)]
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = list(node.value)
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif any("\ud800" <= character <= "\udfff" for character in node.value):
            raise ValueError("half of a surrogate pair is no character")
        total = 1
        for child in children:
            total += size(child, levels + 1, path | {id(node)})
            if total > MOST_VALUES:
                raise ValueError(f"more than {MOST_VALUES:,} values")
        sizes[id(node)] = total
        return total

    size(root, 0, frozenset())


def _limit(most_mib: int) -> int:
    given = os.environ.get(SIZE_VARIABLE, "")
    return max(most_mib, int(given)) if given.isdecimal() else most_mib


def _kind(mode: int) -> str:
    for test, words in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return words
    return "no file"


def _shown(path: Path) -> str:
    """Return a path as text that can be printed, cut where nobody reads on."""
    text = os.fsencode(os.fspath(path)).decode("utf-8", "backslashreplace").replace("\0", "\\0")
    return text if len(text) <= 300 else f"{text[:200]}...{text[-60:]}"
