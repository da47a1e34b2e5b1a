"""Columnar HDF5 tables: flat arrays plus row offsets per image (CSR), and pools for ragged values.

One file holds ``ids`` (one string per image), ``offsets`` (where each image's rows begin), one flat
dataset per column, one per image-level column, and *pools*: flat arrays of ragged values (a map's
pixels, a mask's RLE bytes) that rows point into with a start and a count. Datasets are gzip(4)+shuffle
in chunks of about 128 KiB, readable by any HDF5. Bytes depend on the content alone.

A table that is read stays on disk: ids, offsets and image-level columns are in memory, rows and pools are read where
they are asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from stages.core.artifacts.files import atomic_path
from stages.core.artifacts.table_file import Array, StoredPool, TableFile, TableSchema
from stages.core.errors import SchemaError, StaleInputError
from stages.core.hdf5_files import created_hdf5

CHUNK_BYTES = 128 * 1024
BLOCK_ROWS = 32_768
"""Rows that are read from a file together."""
CACHE_BYTES = 128 * 2**20
"""Columns of a file that are kept in memory: those of the rows that were last asked for."""


class Pool(Protocol):
    """A flat array of ragged values, in memory or in a file; indexed by a slice or by an array of positions."""

    @property
    def dtype(self) -> Any: ...
    def __len__(self) -> int: ...
    def __getitem__(self, key: Any) -> Any: ...


@dataclass
class Table:
    """Rows of many images in flat arrays.

    Attributes:
        ids: Image ids, (n,).
        offsets: int64 (n + 1,); image ``i`` owns rows ``offsets[i]:offsets[i + 1]``.
        columns: Flat arrays of ``offsets[-1]`` values. Of a table on disk each is read as a whole where it is named;
            use :meth:`rows` for one image.
        image_columns: Flat arrays of ``n`` values.
        pools: Flat arrays of ragged values.
        attrs: Scalars and strings stored with the file.
    """

    ids: tuple[str, ...]
    offsets: Array
    columns: Mapping[str, Array]
    image_columns: dict[str, Array] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._index = {image_id: i for i, image_id in enumerate(self.ids)}

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._index

    @property
    def num_rows(self) -> int:
        """Number of rows of all images together."""
        return int(self.offsets[-1])

    def span(self, image_id: str) -> slice:
        """Return where the rows of one image are in the flat arrays.

        Raises:
            KeyError: the table does not hold this image.
        """
        i = self._index[image_id]
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    def count(self, image_id: str) -> int:
        """Return the number of rows of an image; an image that the table does not hold has none."""
        i = self._index.get(image_id)
        return 0 if i is None else int(self.offsets[i + 1] - self.offsets[i])

    def rows(self, image_id: str) -> dict[str, Array]:
        """Return the columns of one image; an image that the table does not hold has no rows."""
        span = self.span(image_id) if image_id in self._index else slice(0, 0)
        return {name: values[span] for name, values in self.columns.items()}

    def image_row(self, image_id: str) -> dict[str, Any]:
        """Return the image-level values of one image."""
        i = self._index[image_id]
        return {name: values[i].item() for name, values in self.image_columns.items()}

    def in_memory(self) -> Table:
        """Return a copy that holds everything itself, and may be changed."""
        columns = {name: np.array(self.columns[name]) for name in self.columns}
        images = {name: values.copy() for name, values in self.image_columns.items()}
        pools = {name: np.array(values[:]) for name, values in self.pools.items()}
        return Table(self.ids, self.offsets.copy(), columns, images, pools, dict(self.attrs))

    def column_blocks(self, name: str) -> Iterator[Array]:
        """Yield a column in pieces of a size that memory holds."""
        yield self.columns[name]

    def pool_blocks(self, name: str) -> Iterator[Array]:
        """Yield a pool in pieces of a size that memory holds."""
        yield self.pools[name][:]


class StoredTable(Table):
    """A table on disk; columns are read in blocks of rows, of which the last are kept.

    Args:
        path, schema: As for :class:`TableFile`.

    Raises:
        MissingInputError, SchemaError: see :class:`TableFile`.
    """

    def __init__(self, path: Path, schema: TableSchema) -> None:
        self._file = TableFile(path, schema)
        self._blocks: OrderedDict[int, dict[str, Array]] = OrderedDict()
        row_bytes = sum(np.dtype(dtype).itemsize for dtype in schema.columns.values())
        self._most_blocks = max(2, CACHE_BYTES // (BLOCK_ROWS * max(1, row_bytes)))
        super().__init__(
            ids=self._file.ids,
            offsets=self._file.offsets,
            columns=_StoredColumns(self._file),
            image_columns={name: self._file.read(f"images/{name}") for name in schema.image_columns},
            pools={name: StoredPool(self._file, name) for name in schema.pools},
            attrs=self._file.attrs,
        )

    def rows(self, image_id: str) -> dict[str, Array]:
        """Return the columns of one image; an image that the table does not hold has no rows."""
        image = self._index.get(image_id)
        first, end = (0, 0) if image is None else (int(self.offsets[image]), int(self.offsets[image + 1]))
        if first == end:
            return {name: np.zeros(0, dtype) for name, dtype in self._file.schema.columns.items()}
        numbers = range(first // BLOCK_ROWS, (end - 1) // BLOCK_ROWS + 1)
        start, stop = first - numbers[0] * BLOCK_ROWS, end - numbers[0] * BLOCK_ROWS
        if len(numbers) == 1:
            return {name: values[start:stop] for name, values in self._block(numbers[0]).items()}
        blocks = [self._block(number) for number in numbers]
        return {name: np.concatenate([own[name] for own in blocks])[start:stop] for name in blocks[0]}

    def column_blocks(self, name: str) -> Iterator[Array]:
        """Yield a column in pieces of a size that memory holds."""
        for start in range(0, self.num_rows, BLOCK_ROWS):
            yield self._file.read(f"columns/{name}", start, start + BLOCK_ROWS)

    def pool_blocks(self, name: str) -> Iterator[Array]:
        """Yield a pool in pieces of a size that memory holds."""
        length = len(self.pools[name])
        for start in range(0, length, CHUNK_BYTES):
            yield self.pools[name][start : min(start + CHUNK_BYTES, length)]

    def close(self) -> None:
        """Close the file and forget its rows; reading opens it again."""
        self._file.close()
        self._blocks.clear()

    def _block(self, number: int) -> dict[str, Array]:
        """Columns of the rows of a block."""
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        start = number * BLOCK_ROWS
        names = self._file.schema.columns
        block = {name: self._file.read(f"columns/{name}", start, start + BLOCK_ROWS) for name in names}
        self._blocks[number] = block
        if len(self._blocks) > self._most_blocks:
            self._blocks.popitem(last=False)
        return block


class _StoredColumns(Mapping[str, Array]):
    """Whole columns, read where they are named."""

    def __init__(self, file: TableFile) -> None:
        self._file = file

    def __getitem__(self, name: str) -> Array:
        if name not in self._file.schema.columns:
            raise KeyError(name)
        return self._file.read(f"columns/{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.schema.columns)

    def __len__(self) -> int:
        return len(self._file.schema.columns)


@dataclass
class ImageRows:
    """What a map-style stage returns for one image: row columns, image-level values and pool items.

    ``pools[name]`` holds one array per row; the start and count columns are filled in when rows are
    gathered into a table.
    """

    columns: dict[str, Array]
    image_columns: dict[str, Any] = field(default_factory=dict)
    pools: dict[str, list[Array]] = field(default_factory=dict)


def gather(
    schema: TableSchema, rows: Mapping[str, ImageRows], attrs: Mapping[str, Any] | None = None
) -> Table:
    """Concatenate the rows of images, in the order of ``rows``, into one table.

    Raises:
        SchemaError: a column is missing, unknown, or of another length than its neighbours.
    """
    pointer_columns = {c for _, start, count in schema.pools.values() for c in (start, count)}
    given = set(schema.columns) - pointer_columns
    counts = [_row_count(schema, item, given, image_id) for image_id, item in rows.items()]
    columns = {
        name: _concat([item.columns[name] for item in rows.values()], schema.columns[name])
        for name in sorted(given)
    }
    pools: dict[str, Array] = {}
    for pool, (dtype, start, count) in schema.pools.items():
        items = [np.asarray(values).ravel() for item in rows.values() for values in item.pools[pool]]
        sizes = np.array([len(values) for values in items], dtype=np.int64)
        columns[start] = (np.cumsum(sizes) - sizes).astype(schema.columns[start])
        columns[count] = sizes.astype(schema.columns[count])
        pools[pool] = _concat(items, dtype)
    image_columns = {
        name: np.array([item.image_columns[name] for item in rows.values()], dtype=dtype)
        for name, dtype in schema.image_columns.items()
    }
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
    ordered = {name: columns[name] for name in schema.columns}
    return Table(tuple(rows), offsets, ordered, image_columns, pools, dict(attrs or {}))


def _row_count(schema: TableSchema, item: ImageRows, columns: set[str], image_id: str) -> int:
    """Check the columns and pools of one image, and return the number of its rows."""
    if set(item.columns) != columns:
        raise SchemaError(f"columns {sorted(item.columns)} given, {sorted(columns)} expected", where=image_id)
    lengths = {len(values) for values in item.columns.values()}
    lengths |= {len(item.pools.get(pool, [])) for pool in schema.pools}
    if len(lengths) != 1:
        raise SchemaError(f"columns of unequal length {sorted(lengths)}", where=image_id)
    return lengths.pop()


def _concat(arrays: Sequence[Array], dtype: str) -> Array:
    if not arrays:
        return np.zeros(0, dtype=dtype)
    return np.concatenate([np.asarray(values, dtype=dtype) for values in arrays])


def write_table(path: Path, schema: TableSchema, table: Table) -> None:
    """Write a table atomically, in pieces; the same content gives the same bytes, wherever it was read from."""
    with atomic_path(path) as temporary, created_hdf5(temporary) as file:
        file.attrs["weaksam_artifact"] = schema.name
        file.attrs["schema_version"] = schema.version
        for key, value in sorted(table.attrs.items()):
            file.attrs[key] = value
        ids = np.array([i.encode() for i in table.ids], dtype=_id_dtype(table.ids))
        _write(file, "ids", ids.dtype, len(ids), [ids])
        _write(file, "offsets", np.dtype(np.int64), len(table.offsets), [table.offsets])
        for name, dtype in schema.columns.items():
            _write(file, f"columns/{name}", np.dtype(dtype), table.num_rows, table.column_blocks(name))
        for name, dtype in schema.image_columns.items():
            _write(file, f"images/{name}", np.dtype(dtype), len(ids), [table.image_columns[name]])
        for name, (dtype, _, _) in schema.pools.items():
            length = len(table.pools[name])
            _write(file, f"pools/{name}", np.dtype(dtype), length, table.pool_blocks(name))


def _id_dtype(ids: Sequence[str]) -> str:
    return f"S{max((len(i.encode()) for i in ids), default=1) or 1}"


def _write(file: h5py.File, name: str, dtype: np.dtype[Any], length: int, blocks: Iterable[Array]) -> None:
    """Write a dataset from arrays that together have `length` entries."""
    # No timestamps: HDF5 would otherwise store the time and two equal runs would differ.
    if length == 0:
        file.create_dataset(name, (0,), dtype, track_times=False)
        return
    chunk = min(length, max(1, CHUNK_BYTES // max(1, dtype.itemsize)))
    dataset = file.create_dataset(
        name,
        (length,),
        dtype,
        chunks=(chunk,),
        compression="gzip",
        compression_opts=4,
        shuffle=True,
        track_times=False,
    )
    written = 0
    for values in _whole_chunks(blocks, chunk):
        dataset[written : written + len(values)] = values.astype(dtype, copy=False)
        written += len(values)
    if written != length:
        raise SchemaError(f"column of {written} values where {length} are expected", where=name)


def _whole_chunks(blocks: Iterable[Array], chunk: int) -> Iterator[Array]:
    """Cut arrays into pieces of whole chunks, whose order in the file then depends on the content alone."""
    waiting: list[Array] = []
    held = 0
    for block in blocks:
        waiting.append(np.asarray(block))
        held += len(block)
        if held >= chunk:
            joined = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
            whole = held - held % chunk
            yield joined[:whole]
            waiting, held = [joined[whole:]], held - whole
    if held:
        yield np.concatenate(waiting)


def read_table(path: Path, schema: TableSchema) -> StoredTable:
    """Open a table; it is checked here, and its rows are read where they are asked for.

    Raises:
        MissingInputError: no such file.
        SchemaError: not HDF5, another artifact, another schema version, or columns that do not fit it.
    """
    return StoredTable(path, schema)


def read_split_table(path: Path, schema: TableSchema, split: str, ids: Sequence[str]) -> StoredTable:
    """Open a table that was made from a split of this name with these images.

    Raises:
        MissingInputError, SchemaError: see `read_table`.
        StaleInputError: it holds none of the split's images.
    """
    table = read_table(path, schema)
    if ids and not any(image_id in table for image_id in ids):
        raise StaleInputError(
            f"holds no image of {split}", where=path, hint=f"give the {schema.name} of this split"
        )
    return table
