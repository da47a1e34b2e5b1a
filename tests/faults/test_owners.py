"""One run, one owner: who works in an output folder, and what happens to those who come second."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.artifacts.manifest import read_manifest
from stages.core.artifacts.table import ImageRows, write_table
from stages.core.artifacts.table_file import TableSchema
from stages.core.datasets import catalog
from stages.core.errors import OutputExistsError
from stages.core.runtime import ownership, parts
from stages.core.runtime.execute import execute
from stages.core.runtime.ownership import Lock, Owner, take, this_process
from stages.core.runtime.parts import ImageFunction, map_images
from stages.core.runtime.request import Request
from stages.core.spec import Counts, OutputSpec, Plan, StageContext, StageSpec
from tests.fake_split import FakeSplit
from tests.test_execute import ToyConfig

SCHEMA = TableSchema("toy", 1, {"x": "float32"}, {})
GONE = 2**22 + 7
"""A process number that no process has."""


def ones() -> ImageFunction:
    return lambda image_id: ImageRows({"x": np.full(2, ord(image_id))}, {})


class MapStage:
    spec = StageSpec("cam", "", (), (OutputSpec("toy.h5", "cams"),), shardable=("train",), uses_device=True)

    def __init__(self, during: Callable[[StageContext], object] = lambda context: None) -> None:
        self.during = during

    def plan(self, config: Any, context: StageContext) -> Plan:
        return Plan(len(context.split.ids))

    def run(self, config: Any, context: StageContext) -> Counts:
        self.during(context)
        table = map_images(context, SCHEMA, ones, "toy")
        if table is None:
            return {}
        write_table(context.out / "toy.h5", SCHEMA, table)
        return {"rows": table.num_rows}


@pytest.fixture(autouse=True)
def fake_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        catalog, "open_split", lambda name, root, classes=(): FakeSplit(tuple("abcdefgh"), name)
    )
    monkeypatch.setattr(parts.part_lists, "__defaults__", (1,))


@pytest.fixture
def asked(tmp_path: Path) -> Request:
    return Request(split="toy_train", run=tmp_path / "run", data=tmp_path, show_progress=False)


def test_take__second_process_learns_whose_it_is(tmp_path: Path) -> None:
    path, here = tmp_path / "lock", this_process()
    first = take(path, replace(here, host="gpu03", machine="another", pid=4711, job="17"))
    assert isinstance(first, Lock)
    second = take(path, here)
    assert isinstance(second, Owner)
    assert "process 4711 on gpu03, job 17" in str(second)
    first.release()
    assert isinstance(take(path, here), Lock)
    assert [p.name for p in tmp_path.iterdir()] == ["lock"], "nothing of the attempts stays"


@pytest.mark.parametrize(
    ("left", "silent", "taken"),
    [
        ({"pid": GONE}, 0.0, True),  # a process of this machine that has ended
        ({"born": "1"}, 0.0, True),  # its number has been given to another process
        ({"machine": "other"}, 0.0, False),
        ({"machine": "other"}, 3600.0, True),
        ({"machine": "other", "job": "9"}, 0.0, True),  # this job's own first run, before the requeue
    ],
)
def test_take__from_an_owner_that_ended(
    tmp_path: Path, left: dict[str, Any], silent: float, taken: bool
) -> None:
    path, here = tmp_path / "lock", replace(this_process(), job="9")
    lock = take(path, replace(here, job="8") if "job" not in left else here)
    assert isinstance(lock, Lock)
    lock._released.set()  # as if killed: the file stays, and nobody touches it
    path.write_text(path.read_text())
    own = ownership.read_owner(path)
    assert own is not None
    other = take(tmp_path / "made", replace(own, **left))
    assert isinstance(other, Lock)
    (tmp_path / "made").rename(path)
    now = path.stat().st_mtime
    os.utime(path, (now - silent, now - silent))
    assert isinstance(take(path, here), Lock) is taken
    other._released.set()


def test_execute__second_run_with_other_settings_is_refused(asked: Request) -> None:
    refused: list[str] = []

    def second(context: StageContext) -> None:
        with pytest.raises(OutputExistsError) as caught:
            execute(MapStage(), ToyConfig(word="other"), replace(asked, overwrite=True))
        refused.append(str(caught.value))

    outcome = execute(MapStage(second), ToyConfig(), asked)
    assert f"another process works here (process {os.getpid()}" in refused[0]
    assert read_manifest(outcome.out).config == {"word": "x"}
    assert sorted(p.name for p in outcome.out.iterdir()) == [
        "events.log",
        "manifest.json",
        "resolved.yaml",
        "toy.h5",
    ]


def test_execute__shards_that_start_and_end_at_once(asked: Request) -> None:
    whole = execute(MapStage(), ToyConfig(), replace(asked, run=asked.run.parent / "whole"))
    together = threading.Barrier(4)
    statuses: list[str] = []

    def shard(index: int) -> None:
        together.wait()
        stage = MapStage(lambda context: together.wait())
        statuses.append(execute(stage, ToyConfig(), replace(asked, shard=(index, 4))).status)

    threads = [threading.Thread(target=shard, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == ["done", "shard done", "shard done", "shard done"], "one merges"
    out = asked.folder("cam")
    assert (out / "toy.h5").read_bytes() == (whole.out / "toy.h5").read_bytes()
    assert read_manifest(out).counts["rows"] == 16
    assert not list(out.glob(".*")), "no locks stay"
    assert execute(MapStage(), ToyConfig(), replace(asked, shard=(1, 4))).status == "already done"


def test_execute__parts_of_another_run_are_not_taken(asked: Request) -> None:
    out = asked.folder("cam")

    def late_part(context: StageContext) -> None:
        """A process that was thought dead finishes a part of the run that was here before."""
        stale = replace(context, made_by="older settings", split=FakeSplit(("z",)))  # type: ignore[arg-type]
        (out / "parts").mkdir()
        map_images(stale, TableSchema("toy", 1, {"x": "float32"}, {}), ones, "stale")

    outcome = execute(MapStage(late_part), ToyConfig(), asked)
    assert outcome.manifest is not None
    assert outcome.manifest.counts["rows"] == 16
