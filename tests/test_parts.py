"""Map-style work: same bytes whatever the workers, shards and restarts."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.artifacts.table import ImageRows, write_table
from stages.core.artifacts.table_file import TableSchema
from stages.core.errors import ImageError, PreemptedError, UsageError
from stages.core.runtime import parts
from stages.core.runtime.parts import ImageFunction, map_images, parse_shard
from stages.core.spec import StageContext
from tests.fake_split import FakeSplit, weak

SCHEMA = TableSchema("toy", 1, {"x": "float32"}, {"length": "int32"})
SPLIT = FakeSplit(ids=tuple("abcdefghij"))


def build(bad: str, log: Path | None) -> ImageFunction:
    """A function that fails on one image and notes every call."""

    def function(image_id: str) -> ImageRows:
        if log is not None:
            with log.open("a") as stream:
                stream.write(image_id)
        if image_id == bad:
            raise ImageError("truncated", where=image_id)
        return ImageRows({"x": np.full(ord(image_id) % 3, ord(image_id))}, {"length": 1})

    return function


def context(out: Path, **changes: Any) -> StageContext:
    return replace(StageContext(split=weak(SPLIT), run=out, out=out), **changes)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_SIZE", 3)


def run(
    folder: Path, bad: str = "e", log: Path | None = None, **changes: Any
) -> tuple[bytes | None, dict[str, str]]:
    here = context(folder, **changes)
    table = map_images(here, SCHEMA, functools.partial(build, bad, log), "toy")
    if table is None:
        return None, {}
    write_table(folder / "toy.h5", SCHEMA, table)
    return (folder / "toy.h5").read_bytes(), here.failures.entries


def test_map_images__workers_do_not_change_bytes(tmp_path: Path) -> None:
    alone, failures = run(tmp_path / "one")
    pooled, pooled_failures = run(tmp_path / "two", workers=2)
    assert alone == pooled
    assert list(failures) == list(pooled_failures) == ["e"]
    assert "truncated" in failures["e"]


def test_map_images__shards_merge_when_the_last_one_ends(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    assert run(tmp_path / "cut", shard=(1, 3))[0] is None
    assert run(tmp_path / "cut", shard=(0, 3))[0] is None
    last, failures = run(tmp_path / "cut", shard=(2, 3))
    assert last == whole
    assert list(failures) == ["e"]


def test_map_images__resume_does_finished_parts_only_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    calls = iter([None, None, PreemptedError("stop")])

    def interrupted() -> None:
        if (error := next(calls, None)) is not None:
            raise error

    with pytest.raises(PreemptedError):
        run(tmp_path / "out", log=log, interrupted_fn=interrupted)
    first = log.read_text()
    again, failures = run(tmp_path / "out", log=log)
    assert sorted(log.read_text()) == sorted(SPLIT.ids), "every image exactly once over both runs"
    assert 0 < len(first) < len(SPLIT.ids)
    assert (again, failures) == run(tmp_path / "fresh")


def test_map_images__bug_in_the_function_is_not_swallowed(tmp_path: Path) -> None:
    def factory() -> ImageFunction:
        return lambda image_id: 1 / 0  # type: ignore[return-value]

    with pytest.raises(ZeroDivisionError):
        map_images(context(tmp_path), SCHEMA, factory, "toy")


@pytest.mark.parametrize(
    ("images", "parts_made"), [(0, 0), (3, 1), (4, 2), (1536, 512), (1537, 385), (82783, 512)]
)
def test_part_lists__grow_rather_than_be_thousands(images: int, parts_made: int) -> None:
    made = parts.part_lists([str(i) for i in range(images)])
    assert len(made) == parts_made
    assert [i for part in made for i in part] == [str(i) for i in range(images)]


@pytest.mark.parametrize("text", ["1", "a/b", "2/2", "-1/2", "1/0"])
def test_parse_shard__malformed(text: str) -> None:
    with pytest.raises(UsageError):
        parse_shard(text)


def test_parse_shard__zero_based() -> None:
    assert parse_shard("1/2") == (1, 2)
