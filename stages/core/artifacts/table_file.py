"""The HDF5 file of a table: checked once when it is opened, read in slices, opened by every process for itself.

The check reads names, types and lengths, the ids and the offsets, but neither columns nor pools: it takes milliseconds
whatever the size of the file. What a file holds elsewhere (links, external storage) is refused, not followed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from stages.core.errors import MissingInputError, SchemaError

Array = NDArray[Any]
WRITE_AGAIN = "run the stage that writes it again, or point at the right file"


@dataclass(frozen=True)
class TableSchema:
    """What a table holds.

    Attributes:
        name: Artifact name, written into the file and checked on reading.
        version: Schema version; a reader refuses any other.
        columns: Row columns, name -> numpy dtype string.
        image_columns: Columns with one value per image.
        pools: Pool name -> (dtype, start column, count column).
    """

    name: str
    version: int
    columns: Mapping[str, str]
    image_columns: Mapping[str, str] = field(default_factory=dict)
    pools: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)


class TableFile:
    """A table's file, open for reading.

    Args:
        path: HDF5 file.
        schema: What it must hold.

    Attributes:
        ids: Image ids, (n,).
        offsets: int64 (n + 1,), from 0, never falling.
        attrs: Scalars and strings stored with the file.

    Raises:
        MissingInputError: no such file.
        SchemaError: not HDF5, another artifact or schema version, a column that is missing, no plain array of this
            file, or of another type or length, or pointers beyond a pool; names file and column.
    """

    def __init__(self, path: Path, schema: TableSchema) -> None:
        self.path, self.schema = path, schema
        self._opened: tuple[int, h5py.File] | None = None
        if not path.is_file():
            raise MissingInputError(
                f"no {schema.name} file here", where=path, hint=f"run the stage that writes {path.name}"
            )
        with self._faults():
            self._check_artifact()
            self._check("ids", None, None)
            self._check("offsets", "int64", None)
            self.ids = tuple(raw.decode() for raw in self.read("ids").tolist())
            self.offsets = self.read("offsets")
            self._check_index()
            for name, dtype in schema.columns.items():
                self._check(f"columns/{name}", dtype, int(self.offsets[-1]))
            for name, dtype in schema.image_columns.items():
                self._check(f"images/{name}", dtype, len(self.ids))
            for name, (dtype, start, count) in schema.pools.items():
                self._check(f"pools/{name}", dtype, None)
                self._check_pointers(name, start, count)
            kept = self._file.attrs.items()
            self.attrs = {k: v for k, v in kept if k not in ("weaksam_artifact", "schema_version")}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Read the entries ``start:stop`` of a dataset, e.g. ``columns/x``.

        Raises:
            SchemaError: its bytes are damaged.
        """
        with self._faults():
            values: Array = self._file[name][start:stop]
            return values

    def length(self, name: str) -> int:
        """Number of entries of a dataset."""
        return int(self._file[name].shape[0])

    def close(self) -> None:
        """Close the file; reading from it opens it again."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].close()
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @property
    def _file(self) -> h5py.File:
        """The open file. A process that was forked must not use its parent's."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), h5py.File(self.path, "r"))
        return self._opened[1]

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
            raise SchemaError(
                f"cannot be read as a {self.schema.name} table ({error})", where=self.path, hint=WRITE_AGAIN
            ) from error

    def _refuse(self, what: str) -> SchemaError:
        return SchemaError(what, where=self.path, hint=WRITE_AGAIN)

    def _check_artifact(self) -> None:
        name, version = (self._file.attrs.get(key) for key in ("weaksam_artifact", "schema_version"))
        if name != self.schema.name:
            raise self._refuse(f"holds '{name}', '{self.schema.name}' expected")
        if version != self.schema.version:
            raise self._refuse(f"schema version {version}, this weaksam reads {self.schema.version}")

    def _check(self, name: str, dtype: str | None, length: int | None) -> None:
        """Check that a dataset is a plain array; `dtype` None is text, `length` None any length."""
        parts = name.split("/")
        for depth in range(len(parts)):
            link = self._file.get("/".join(parts[: depth + 1]), getlink=True)
            if link is None:
                raise self._refuse(f"has no '{name}'")
            if not isinstance(link, h5py.HardLink):
                raise self._refuse(f"'{name}' is a link, not data of this file")
        found = self._file[name]
        if not isinstance(found, h5py.Dataset):
            raise self._refuse(f"'{name}' is a group, not an array")
        if found.is_virtual or found.external:
            raise self._refuse(f"'{name}' is stored in another file")
        if found.shape is None or len(found.shape) != 1:
            raise self._refuse(f"'{name}' has the shape {found.shape}, one dimension expected")
        if found.dtype.kind != "S" if dtype is None else found.dtype != np.dtype(dtype):
            raise self._refuse(f"'{name}' holds {found.dtype}, {dtype or 'byte strings'} expected")
        if length is not None and found.shape[0] != length:
            raise self._refuse(
                f"'{name}' has {found.shape[0]} entries, {length} expected: lengths do not fit together"
            )

    def _check_index(self) -> None:
        if len(set(self.ids)) < len(self.ids):
            twice = next(image_id for image_id in self.ids if self.ids.count(image_id) > 1)
            raise self._refuse(f"holds image '{twice}' more than once")
        if len(self.offsets) != len(self.ids) + 1:
            raise self._refuse(f"'offsets' has {len(self.offsets)} entries for {len(self.ids)} images")
        if self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise self._refuse("'offsets' do not rise from 0")

    def _check_pointers(self, pool: str, start: str, count: str) -> None:
        """Rows point into a pool one after another: the end of the last is the length that the pool must have."""
        rows = int(self.offsets[-1])
        if not rows:
            return
        first, size = (int(self.read(f"columns/{name}", rows - 1)[0]) for name in (start, count))
        if min(first, size) < 0 or first + size > self.length(f"pools/{pool}"):
            raise self._refuse(
                f"its rows point to entry {first + size} of pool '{pool}', which has {self.length(f'pools/{pool}')}"
            )


class StoredPool:
    """A pool of a file, read where it is indexed.

    Args:
        file: The open file.
        name: Of the pool.
    """

    def __init__(self, file: TableFile, name: str) -> None:
        self._file, self._name = file, name
        self._length = file.length(f"pools/{name}")
        self.dtype = np.dtype(file.schema.pools[name][0])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: slice | Array) -> Array:
        """Entries of a slice, or at integer positions of any shape.

        Raises:
            SchemaError: a position outside the pool.
        """
        if isinstance(key, slice):
            start, stop = key.start or 0, self._length if key.stop is None else key.stop
            self._inside(start, stop)
            return self._file.read(f"pools/{self._name}", start, stop)
        if key.size == 0:
            return np.zeros(key.shape, self.dtype)
        start, stop = int(key.min()), int(key.max()) + 1
        self._inside(start, stop)
        values: Array = self._file.read(f"pools/{self._name}", start, stop)[key - start]
        return values

    def _inside(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self._length:
            raise SchemaError(
                f"a row points to entries {start} to {stop} of pool '{self._name}', which has {self._length}",
                where=self._file.path,
                hint=WRITE_AGAIN,
            )
