"""Columnar tables: round trips, deterministic bytes, merging, damaged files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stages.core.artifacts import table as table_module
from stages.core.artifacts.joined_table import JoinedTable
from stages.core.artifacts.table import ImageRows, Table, gather, read_table, write_table
from stages.core.artifacts.table_file import TableFile, TableSchema
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


def part_files(folder: Path, parts: list[list[str]]) -> list[Path]:
    paths = [folder / f"part-{index}.h5" for index in range(len(parts))]
    for path, ids in zip(paths, parts, strict=True):
        write_table(path, SCHEMA, table_of(ids))
    return paths


@pytest.mark.parametrize("parts", [[["a", "b", "c"]], [["a"], ["b", "c"]], [["a"], [], ["b"], ["c"]]])
def test_joined_table__equals_the_whole(tmp_path: Path, parts: list[list[str]]) -> None:
    whole = table_of(["a", "b", "c"])
    joined = JoinedTable(part_files(tmp_path, parts), SCHEMA, whole.ids)
    joined.attrs = whole.attrs
    for image_id in ("c", "a", "b", "unknown"):
        for name, values in whole.rows(image_id).items():
            np.testing.assert_array_equal(joined.rows(image_id)[name], values)
    np.testing.assert_array_equal(joined.columns["start"], whole.columns["start"])
    np.testing.assert_array_equal(joined.pools["values"][2:5], whole.pools["values"][2:5])
    assert joined.image_row("c") == {"height": 30}
    write_table(tmp_path / "one.h5", SCHEMA, whole)
    write_table(tmp_path / "two.h5", SCHEMA, joined)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_joined_table__has_one_part_open_at_a_time(tmp_path: Path) -> None:
    paths = part_files(tmp_path, [["a"], ["b"], ["c"]])
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    joined = JoinedTable(paths, SCHEMA, ["a", "b", "c"])
    write_table(tmp_path / "whole.h5", SCHEMA, joined)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) <= before + 1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([["a"]], r"lack images \['b', 'c'\]"),
        ([["a", "b"], ["b", "c"]], "'b' occurs in two parts"),
        ([["b", "a"], ["c"]], "another order"),
    ],
)
def test_joined_table__missing_double_or_misplaced_images(
    tmp_path: Path, parts: list[list[str]], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        JoinedTable(part_files(tmp_path, parts), SCHEMA, ["a", "b", "c"])


def test_write_table__pieces_of_any_size_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks are as many as in a table that is written at once, in the same order."""
    monkeypatch.setattr(table_module, "CHUNK_BYTES", 64)
    generator = np.random.default_rng(0)
    content = {
        f"{i:03d}": rows(generator.random(n).tolist(), generator.integers(0, 9, n).tolist(), i)
        for i, n in enumerate(generator.integers(0, 30, 40).tolist())
    }
    whole = gather(SCHEMA, content)
    write_table(tmp_path / "whole.h5", SCHEMA, whole)
    ids, paths = list(content), []
    for start in range(0, len(ids), 7):
        paths.append(tmp_path / f"part-{start}.h5")
        write_table(paths[-1], SCHEMA, gather(SCHEMA, {i: content[i] for i in ids[start : start + 7]}))
    write_table(tmp_path / "joined.h5", SCHEMA, JoinedTable(paths, SCHEMA, ids))
    monkeypatch.setattr(table_module, "BLOCK_ROWS", 11)
    write_table(tmp_path / "again.h5", SCHEMA, read_table(tmp_path / "whole.h5", SCHEMA))
    assert (tmp_path / "joined.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_stored_table__blocks_that_images_span_and_that_were_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "BLOCK_ROWS", 2)
    monkeypatch.setattr(table_module, "CACHE_BYTES", 1)  # two blocks
    content = {f"{i}": rows([float(10 * i + k) for k in range(i)], [1] * i, i) for i in range(6)}
    whole = gather(SCHEMA, content)
    write_table(tmp_path / "t.h5", SCHEMA, whole)
    table = read_table(tmp_path / "t.h5", SCHEMA)
    for image_id in ("5", "1", "0", "3", "5", "2", "4"):
        for name, values in whole.rows(image_id).items():
            np.testing.assert_array_equal(table.rows(image_id)[name], values)
            assert table.rows(image_id)[name].dtype == values.dtype
        assert table.count(image_id) == int(image_id)


def test_stored_table__opening_reads_neither_columns_nor_pools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(tmp_path / "t.h5", SCHEMA, table_of(["a", "b", "c"]))
    read, names = TableFile.read, []

    def recorded(file: TableFile, name: str, start: int = 0, stop: int | None = None) -> Any:
        names.append(name)
        return read(file, name, start, stop)

    monkeypatch.setattr(TableFile, "read", recorded)
    read_table(tmp_path / "t.h5", SCHEMA)
    # The last pointers alone tell whether a pool is long enough.
    assert names == ["ids", "offsets", "columns/start", "columns/count", "images/height"]


def test_stored_table__a_forked_process_opens_the_file_itself(tmp_path: Path) -> None:
    write_table(tmp_path / "t.h5", SCHEMA, table_of(["a", "b", "c"]))
    table = read_table(tmp_path / "t.h5", SCHEMA)
    child = os.fork()
    if not child:
        os._exit(0 if table.rows("a")["x"].tolist() == [1.0, 2.0] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert table.rows("c")["x"].tolist() == [5.0]


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


def damaged(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return apply


def replaced(name: str, **data: Any) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **data)

    return damaged(change)


def linked(name: str, link: Any) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return damaged(change)


def as_group(file: h5py.File) -> None:
    del file["columns/x"]
    file.create_group("columns/x")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replaced("columns/x", data=np.zeros(3)), "'columns/x' holds float64, float32 expected"),
        (replaced("columns/x", data=np.zeros((3, 1), "f4")), r"'columns/x' has the shape \(3, 1\)"),
        (replaced("columns/x", data=np.zeros(2, "f4")), "'columns/x' has 2 entries, 3 expected"),
        (replaced("columns/x", data=np.float32(1)), r"'columns/x' has the shape \(\)"),
        (damaged(as_group), "'columns/x' is a group"),
        (damaged(lambda file: file.pop("columns/x")), "has no 'columns/x'"),
        (linked("columns/x", h5py.SoftLink("/columns/x")), "'columns/x' is a link"),
        (linked("columns", h5py.SoftLink("/columns")), "'columns/x' is a link"),
        (linked("columns/x", h5py.ExternalLink("other.h5", "/x")), "'columns/x' is a link"),
        (
            replaced("columns/x", shape=(3,), dtype="f4", external=[("raw.bin", 0, 12)]),
            "'columns/x' is stored in another file",
        ),
        (replaced("offsets", data=np.array([0.0, np.nan, 3.0])), "'offsets' holds float64, int64 expected"),
        (replaced("offsets", data=np.array([0, 4, 3])), "'offsets' do not rise"),
        (replaced("offsets", data=np.array([1, 2, 3])), "'offsets' do not rise from 0"),
        (replaced("offsets", data=np.array([0, 3])), "'offsets' has 2 entries for 2 images"),
        (replaced("offsets", data=np.zeros(0, np.int64)), "'offsets' has 0 entries"),
        (replaced("ids", data=np.array([b"a", b"a"])), "image 'a' more than once"),
        (replaced("ids", data=np.array([b"\xff", b"a"])), "cannot be read as a toy table"),
        (replaced("ids", data=np.arange(2)), "'ids' holds int64, byte strings expected"),
        (replaced("pools/values", data=np.zeros(4, "f2")), "entry 5 of pool 'values', which has 4"),
        (damaged(lambda file: file.attrs.__setitem__("schema_version", "two")), "schema version two"),
    ],
)
def test_read_table__damaged(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "t.h5"
    write_table(path, SCHEMA, table_of(["a", "c"]))
    damage(path)
    with pytest.raises(SchemaError, match=message) as caught:
        read_table(path, SCHEMA)
    assert str(path) in str(caught.value)
    assert "hint: run the stage that writes it again" in str(caught.value)


def test_stored_table__a_row_that_points_outside_its_pool(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    write_table(path, SCHEMA, table_of(["a", "c"]))
    with h5py.File(path, "r+") as file:
        file["columns/count"][0] = 999
    table = read_table(path, SCHEMA)
    start, count = (int(table.rows("a")[name][0]) for name in ("start", "count"))
    with pytest.raises(SchemaError, match="pool 'values', which has 5"):
        table.pools["values"][start : start + count]
