"""Parts of a table read as one, a part at a time: what merges them in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.artifacts.table import StoredTable, Table, read_table
from stages.core.artifacts.table_file import Array, TableSchema
from stages.core.errors import SchemaError


class JoinedTable(Table):
    """The rows of several files in the order of these; no more than one of them is open.

    Args:
        paths: Files of parts.
        schema: What each of them holds.
        ids: All images in order: those of the first part, then those of the second, and so on.

    Raises:
        SchemaError: an image is missing, occurs twice, or is not in ``ids``.
    """

    def __init__(self, paths: Sequence[Path], schema: TableSchema, ids: Sequence[str]) -> None:
        self._paths, self._schema = list(paths), schema
        self._current: tuple[int, StoredTable] | None = None
        found: list[str] = []
        counts: list[Array] = [np.zeros(1, np.int64)]
        images: dict[str, list[Array]] = {name: [] for name in schema.image_columns}
        self._first_image = [0]
        self._pool_starts = {pool: [0] for pool in schema.pools}
        for index in range(len(self._paths)):
            part = self._part(index)
            found += part.ids
            counts.append(np.diff(part.offsets))
            for name, values in part.image_columns.items():
                images[name].append(values)
            self._first_image.append(len(found))
            for pool, starts in self._pool_starts.items():
                starts.append(starts[-1] + len(part.pools[pool]))
        _check_ids(found, ids, schema.name)
        super().__init__(
            ids=tuple(found),
            offsets=np.cumsum(np.concatenate(counts)),
            columns=_JoinedColumns(self, schema),
            image_columns={
                name: np.concatenate(parts) if parts else np.zeros(0, schema.image_columns[name])
                for name, parts in images.items()
            },
            pools={name: _JoinedPool(self, name, np.dtype(schema.pools[name][0])) for name in schema.pools},
        )

    def rows(self, image_id: str) -> dict[str, Array]:
        """Return the columns of one image; an image that the table does not hold has no rows."""
        image = self._index.get(image_id)
        if image is None:
            return super().rows(image_id)
        index = int(np.searchsorted(self._first_image, image, side="right")) - 1
        rows = self._part(index).rows(image_id)
        for pool, (_, start, _) in self._schema.pools.items():
            rows[start] = rows[start] + self._pool_starts[pool][index]
        return rows

    def column_blocks(self, name: str) -> Iterator[Array]:
        """Yield a column part by part."""
        pools = [pool for pool, (_, start, _) in self._schema.pools.items() if start == name]
        for index in range(len(self._paths)):
            values = self._part(index).columns[name]
            yield values + self._pool_starts[pools[0]][index] if pools else values

    def pool_blocks(self, name: str) -> Iterator[Array]:
        """Yield a pool part by part."""
        for index in range(len(self._paths)):
            yield self._part(index).pools[name][:]

    def pool_slice(self, name: str, start: int, stop: int) -> Array:
        """Entries of a pool, of one part or of several."""
        starts = self._pool_starts[name]
        index = int(np.searchsorted(starts, start, side="right")) - 1
        found = []
        while start < stop:
            end = min(stop, starts[index + 1])
            found.append(self._part(index).pools[name][start - starts[index] : end - starts[index]])
            start, index = end, index + 1
        return np.concatenate(found) if found else np.zeros(0, self._schema.pools[name][0])

    def pool_length(self, name: str) -> int:
        """Number of entries of a pool."""
        return self._pool_starts[name][-1]

    def _part(self, index: int) -> StoredTable:
        if self._current is None or self._current[0] != index:
            if self._current is not None:
                self._current[1].close()
            self._current = (index, read_table(self._paths[index], self._schema))
        return self._current[1]


class _JoinedColumns(Mapping[str, Array]):
    def __init__(self, table: JoinedTable, schema: TableSchema) -> None:
        self._table, self._schema = table, schema

    def __getitem__(self, name: str) -> Array:
        blocks = list(self._table.column_blocks(name))
        return np.concatenate(blocks) if blocks else np.zeros(0, self._schema.columns[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._schema.columns)

    def __len__(self) -> int:
        return len(self._schema.columns)


class _JoinedPool:
    def __init__(self, table: JoinedTable, name: str, dtype: np.dtype[Any]) -> None:
        self._table, self._name, self.dtype = table, name, dtype

    def __len__(self) -> int:
        return self._table.pool_length(self._name)

    def __getitem__(self, key: Any) -> Array:
        if isinstance(key, slice):
            stop = len(self) if key.stop is None else key.stop
            return self._table.pool_slice(self._name, key.start or 0, stop)
        if key.size == 0:
            return np.zeros(key.shape, self.dtype)
        first = int(key.min())
        values: Array = self._table.pool_slice(self._name, first, int(key.max()) + 1)[key - first]
        return values


def _check_ids(found: Sequence[str], ids: Sequence[str], where: str) -> None:
    if list(found) == list(ids):
        return
    known: set[str] = set()
    for image_id in found:
        if image_id in known:
            raise SchemaError(f"image '{image_id}' occurs in two parts", where=where)
        known.add(image_id)
    missing, extra = [i for i in ids if i not in known], sorted(known - set(ids))
    raise SchemaError(
        f"parts lack images {missing[:5]} and hold unexpected {extra[:5]}"
        if missing or extra
        else "parts hold the images in another order",
        where=where,
        hint="use --overwrite to start from scratch",
    )
