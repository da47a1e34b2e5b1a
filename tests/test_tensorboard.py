"""Training curves as TensorBoard's events, read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stages.core.viz.tensorboard import CurveWriter
from tests.command_builder import run


def log(folder: Path, *steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"phase": "train", "step": s, "epoch": 0, "loss": 1 / (1 + s), "lr": 0.01} for s in steps]
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(line) + "\n" for line in lines))


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard__curves_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log(tmp_path / "cam" / "a_train", 0, 20)
    log(tmp_path / "wsod" / "a_train", 20, 40, 60)
    assert run("tensorboard", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(tmp_path / "tensorboard"), "points": 10}
    found = scalars(tmp_path / "tensorboard" / "wsod" / "a_train", "train/loss")
    assert [step for step, _ in found] == [20, 40, 60]
    assert [value for _, value in found] == pytest.approx([1 / 21, 1 / 41, 1 / 61])


def test_write_new__each_point_once(tmp_path: Path) -> None:
    log(tmp_path / "cam" / "a_train", 0, 20)
    writer = CurveWriter(tmp_path, tmp_path / "events")
    assert writer.write_new() == 4
    log(tmp_path / "cam" / "a_train", 40)
    assert (writer.write_new(), writer.write_new()) == (2, 0)
    assert [step for step, _ in scalars(tmp_path / "events" / "cam" / "a_train", "train/lr")] == [0, 20, 40]


def test_tensorboard__what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tensorboard", str(tmp_path / "none")) == 3
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run("tensorboard", str(tmp_path)) == 5
    assert 'pip install "weaksam[log]"' in capsys.readouterr().err
