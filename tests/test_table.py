"""Columnar tables: round trips, deterministic bytes, merging, damaged files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from stages.core.artifacts.table import ImageRows, Table, TableSchema, gather, merge, read_table, write_table
from stages.core.errors import MissingInputError, SchemaError

SCHEMA = TableSchema(
    name="toy",
    version=2,
    columns={"x": "float32", "start": "int64", "count": "int64"},
    image_columns={"height": "int32"},
    pools={"values": ("float16", "start", "count")},
)


def rows(xs: list[float], lengths: list[int], height: int) -> ImageRows:
    pool = [np.arange(n, dtype=np.float16) + x for n, x in zip(lengths, xs, strict=True)]
    return ImageRows({"x": np.array(xs)}, {"height": height}, {"values": pool})


def table_of(ids: list[str]) -> Table:
    content = {
        "a": rows([1.0, 2.0], [3, 0], 10),
        "b": rows([], [], 20),  # an image without rows
        "c": rows([5.0], [2], 30),
    }
    return gather(SCHEMA, {i: content[i] for i in ids}, {"note": "n"})


def test_write_table__round_trip(tmp_path: Path) -> None:
    write_table(tmp_path / "t.h5", SCHEMA, table_of(["a", "b", "c"]))
    table = read_table(tmp_path / "t.h5", SCHEMA)
    assert table.ids == ("a", "b", "c")
    assert table.rows("a")["x"].tolist() == [1.0, 2.0]
    assert table.rows("b")["x"].size == 0
    assert table.rows("unknown")["x"].size == 0
    assert table.image_row("c") == {"height": 30}
    c = table.rows("c")
    start, count = int(c["start"][0]), int(c["count"][0])
    assert table.pools["values"][start : start + count].tolist() == [5.0, 6.0]
    assert table.attrs["note"] == "n"


def test_write_table__same_content_same_bytes(tmp_path: Path) -> None:
    for name in ("one.h5", "two.h5"):
        write_table(tmp_path / name, SCHEMA, table_of(["a", "b", "c"]))
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_write_table__no_images(tmp_path: Path) -> None:
    write_table(tmp_path / "t.h5", SCHEMA, gather(SCHEMA, {}))
    assert read_table(tmp_path / "t.h5", SCHEMA).ids == ()


def test_merge__order_of_parts_does_not_matter(tmp_path: Path) -> None:
    whole = table_of(["a", "b", "c"])
    merged = merge(SCHEMA, [table_of(["c"]), table_of(["a", "b"])], ["a", "b", "c"])
    write_table(tmp_path / "one.h5", SCHEMA, whole)
    write_table(tmp_path / "two.h5", SCHEMA, merged)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


@pytest.mark.parametrize("parts", [[["a"]], [["a", "b"], ["b", "c"]], [["a", "b", "c"], []]])
def test_merge__missing_or_double_images(parts: list[list[str]]) -> None:
    tables = [table_of(ids) for ids in parts]
    if parts[-1]:
        with pytest.raises(SchemaError):
            merge(SCHEMA, tables, ["a", "b", "c"])
    else:
        assert merge(SCHEMA, tables, ["a", "b", "c"]).ids == ("a", "b", "c")


def test_gather__unequal_columns() -> None:
    bad = ImageRows({"x": np.zeros(2)}, {"height": 1}, {"values": [np.zeros(1)]})
    with pytest.raises(SchemaError, match="unequal"):
        gather(SCHEMA, {"a": bad})


def test_read_table__not_hdf5(tmp_path: Path) -> None:
    (tmp_path / "t.h5").write_bytes(b"not hdf5 at all")
    with pytest.raises(SchemaError) as caught:
        read_table(tmp_path / "t.h5", SCHEMA)
    assert caught.value.exit_code == 3
    assert "t.h5" in str(caught.value)


def test_read_table__truncated(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    write_table(path, SCHEMA, table_of(["a", "b", "c"]))
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(SchemaError):
        read_table(path, SCHEMA)


def test_read_table__missing(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        read_table(tmp_path / "t.h5", SCHEMA)


@pytest.mark.parametrize(
    "other",
    [
        TableSchema("other", 2, SCHEMA.columns, SCHEMA.image_columns, SCHEMA.pools),  # another artifact
        TableSchema("toy", 3, SCHEMA.columns, SCHEMA.image_columns, SCHEMA.pools),  # another version
        TableSchema("toy", 2, {**SCHEMA.columns, "y": "float32"}, SCHEMA.image_columns, SCHEMA.pools),
    ],
)
def test_read_table__wrong_schema(tmp_path: Path, other: TableSchema) -> None:
    write_table(tmp_path / "t.h5", SCHEMA, table_of(["a"]))
    with pytest.raises(SchemaError):
        read_table(tmp_path / "t.h5", other)


def test_read_table__pointers_beyond_pool(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    write_table(path, SCHEMA, table_of(["a", "c"]))
    with h5py.File(path, "r+") as file:
        file["columns/count"][0] = 999
    with pytest.raises(SchemaError, match="values"):
        read_table(path, SCHEMA)
