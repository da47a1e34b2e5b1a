"""Columnar HDF5 tables: flat arrays plus row offsets per image (CSR), and pools for ragged values.

One file holds ``ids`` (one string per image), ``offsets`` (where each image's rows begin), one flat
dataset per column, one per image-level column, and *pools*: flat arrays of ragged values (a map's
pixels, a mask's RLE bytes) that rows point into with a start and a count. Datasets are gzip(4)+shuffle
in chunks of about 128 KiB, readable by any HDF5. Bytes depend on the content alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.files import atomic_path
from stages.core.errors import MissingInputError, SchemaError, StaleInputError
from stages.core.hdf5_files import created_hdf5

Array = NDArray[Any]
CHUNK_BYTES = 128 * 1024
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


@dataclass
class Table:
    """Rows of many images in flat arrays.

    Attributes:
        ids: Image ids, (n,).
        offsets: int64 (n + 1,); image ``i`` owns rows ``offsets[i]:offsets[i + 1]``.
        columns: Flat arrays of ``offsets[-1]`` values.
        image_columns: Flat arrays of ``n`` values.
        pools: Flat arrays of ragged values.
        attrs: Scalars and strings stored with the file.
    """

    ids: tuple[str, ...]
    offsets: Array
    columns: dict[str, Array]
    image_columns: dict[str, Array] = field(default_factory=dict)
    pools: dict[str, Array] = field(default_factory=dict)
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

    def rows(self, image_id: str) -> dict[str, Array]:
        """Return the columns of one image; an image that the table does not hold has no rows."""
        span = self.span(image_id) if image_id in self._index else slice(0, 0)
        return {name: values[span] for name, values in self.columns.items()}

    def image_row(self, image_id: str) -> dict[str, Any]:
        """Return the image-level values of one image."""
        i = self._index[image_id]
        return {name: values[i].item() for name, values in self.image_columns.items()}


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


def merge(schema: TableSchema, tables: Sequence[Table], ids: Sequence[str]) -> Table:
    """Merge parts into one table ordered as ``ids``; a pure function of its inputs.

    Raises:
        SchemaError: an image is missing, occurs twice, or is not in ``ids``.
    """
    owner: dict[str, Table] = {}
    for table in tables:
        for image_id in table.ids:
            if image_id in owner:
                raise SchemaError(f"image '{image_id}' occurs in two parts", where=schema.name)
            owner[image_id] = table
    missing, extra = [i for i in ids if i not in owner], sorted(set(owner) - set(ids))
    if missing or extra:
        raise SchemaError(
            f"parts lack images {missing[:5]} and hold unexpected {extra[:5]}", where=schema.name
        )
    rows = {image_id: _image_rows(schema, owner[image_id], image_id) for image_id in ids}
    return gather(schema, rows, tables[0].attrs if tables else {})


def _image_rows(schema: TableSchema, table: Table, image_id: str) -> ImageRows:
    columns = table.rows(image_id)
    pools: dict[str, list[Array]] = {}
    for pool, (_, start, count) in schema.pools.items():
        starts, counts = columns.pop(start), columns.pop(count)
        values = table.pools[pool]
        pools[pool] = [values[s : s + c] for s, c in zip(starts.tolist(), counts.tolist(), strict=True)]
    return ImageRows(columns, table.image_row(image_id), pools)


def _concat(arrays: Sequence[Array], dtype: str) -> Array:
    if not arrays:
        return np.zeros(0, dtype=dtype)
    return np.concatenate([np.asarray(values, dtype=dtype) for values in arrays])


def write_table(path: Path, schema: TableSchema, table: Table) -> None:
    """Write a table atomically; the same content gives the same bytes."""
    with atomic_path(path) as temporary, created_hdf5(temporary) as file:
        file.attrs["weaksam_artifact"] = schema.name
        file.attrs["schema_version"] = schema.version
        for key, value in sorted(table.attrs.items()):
            file.attrs[key] = value
        _write(file, "ids", np.array([i.encode() for i in table.ids], dtype=_id_dtype(table.ids)))
        _write(file, "offsets", np.asarray(table.offsets, dtype=np.int64))
        for name, dtype in schema.columns.items():
            _write(file, f"columns/{name}", np.asarray(table.columns[name], dtype=dtype))
        for name, dtype in schema.image_columns.items():
            _write(file, f"images/{name}", np.asarray(table.image_columns[name], dtype=dtype))
        for name, (dtype, _, _) in schema.pools.items():
            _write(file, f"pools/{name}", np.asarray(table.pools[name], dtype=dtype))


def _id_dtype(ids: Sequence[str]) -> str:
    return f"S{max((len(i.encode()) for i in ids), default=1) or 1}"


def _write(file: h5py.File, name: str, values: Array) -> None:
    # No timestamps: HDF5 would otherwise store the time and two equal runs would differ.
    if values.size == 0:
        file.create_dataset(name, data=values, track_times=False)
        return
    chunk = min(len(values), max(1, CHUNK_BYTES // max(1, values.dtype.itemsize)))
    file.create_dataset(
        name,
        data=values,
        chunks=(chunk,),
        compression="gzip",
        compression_opts=4,
        shuffle=True,
        track_times=False,
    )


def read_table(path: Path, schema: TableSchema) -> Table:
    """Read a whole table.

    Raises:
        MissingInputError: no such file.
        SchemaError: not HDF5, another artifact, another schema version, or inconsistent lengths.
    """
    if not path.is_file():
        raise MissingInputError(
            f"no {schema.name} file here", where=path, hint=f"run the stage that writes {path.name}"
        )
    try:
        with h5py.File(path, "r") as file:
            _check_schema(file, schema, path)
            table = Table(
                ids=tuple(raw.decode() for raw in file["ids"][()].tolist()),
                offsets=file["offsets"][()],
                columns={name: file[f"columns/{name}"][()] for name in schema.columns},
                image_columns={name: file[f"images/{name}"][()] for name in schema.image_columns},
                pools={name: file[f"pools/{name}"][()] for name in schema.pools},
                attrs={
                    k: v for k, v in file.attrs.items() if k not in ("weaksam_artifact", "schema_version")
                },
            )
    except (OSError, KeyError, ValueError) as error:
        raise SchemaError(
            f"cannot be read as a {schema.name} table ({error})", where=path, hint=WRITE_AGAIN
        ) from error
    _check_lengths(table, schema, path)
    return table


def read_split_table(path: Path, schema: TableSchema, split: str, ids: Sequence[str]) -> Table:
    """Read a table that was made from a split of this name with these images.

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


def _check_schema(file: h5py.File, schema: TableSchema, path: Path) -> None:
    name, version = file.attrs.get("weaksam_artifact"), int(file.attrs.get("schema_version", -1))
    if name != schema.name:
        raise SchemaError(f"holds '{name}', '{schema.name}' expected", where=path, hint=WRITE_AGAIN)
    if version != schema.version:
        raise SchemaError(
            f"schema version {version}, this weaksam reads {schema.version}", where=path, hint=WRITE_AGAIN
        )


def _check_lengths(table: Table, schema: TableSchema, path: Path) -> None:
    n, rows = len(table.ids), table.num_rows if len(table.offsets) else -1
    wrong = [name for name, values in table.columns.items() if len(values) != rows]
    wrong += [name for name, values in table.image_columns.items() if len(values) != n]
    if len(table.offsets) != n + 1 or (np.diff(table.offsets) < 0).any():
        wrong.append("offsets")
    for pool, (_, start, count) in schema.pools.items():
        ends = table.columns[start].astype(np.int64) + table.columns[count].astype(np.int64)
        if len(ends) and int(ends.max()) > len(table.pools[pool]):
            wrong.append(pool)
    if wrong:
        raise SchemaError(
            f"lengths do not fit together: {wrong}", where=path, hint="run the stage that writes it again"
        )
