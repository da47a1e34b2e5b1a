"""Pickles of plain data: lists, dicts, numbers, text and numpy arrays. Anything else is refused before it runs.

A pickle is a program: it may name any function to be called while it is read. Only what numpy needs to rebuild an
array is allowed here.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from stages.core.errors import MissingInputError, SchemaError

ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    # How Python 2 and the protocols up to 2 write bytes.
    ("_codecs", "encode"),
    ("__builtin__", "bytes"),
    ("builtins", "bytes"),
}
"""Module and name of what a pickle may call."""

DAMAGE = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError,
    RecursionError, MemoryError, OSError,
)  # fmt: skip
"""What reading a damaged pickle raises."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside")


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle of plain data; text of Python 2 is read as Latin-1.

    Raises:
        MissingInputError: no such file.
        SchemaError: no pickle, a damaged one, or one that holds anything but plain data.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except FileNotFoundError as error:
        raise MissingInputError("no such file", where=path) from error
    except DAMAGE as error:
        raise SchemaError(
            f"not a pickle of plain data ({error or type(error).__name__})",
            where=path,
            hint="only lists, dicts, numbers, text and numpy arrays are read; nothing of the file was run",
        ) from error
