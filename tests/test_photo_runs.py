"""The runs of the photo benchmark: which stage runs on which split, with whose inputs and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import photo_runs
from stages.core.errors import ConfigError
from stages.core.runtime.request import Request


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Request]]:
    """What would have been executed: stage, settings, request."""
    found: list[tuple[str, Any, Request]] = []
    monkeypatch.setattr(
        photo_runs, "execute", lambda stage, config, asked: found.append((stage.spec.name, config, asked))
    )
    monkeypatch.setattr(photo_runs, "run_bound", lambda options, seed: options.out / "bound" / f"s{seed}")
    return found


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that the table is asked for with."""
    found: list[str] = []
    monkeypatch.setattr("benchmarks.photos.main", found.extend)
    return found


def test_main__maps_and_proposals_once_then_every_seed(
    tmp_path: Path, requests: list[tuple[str, Any, Request]], table: list[str]
) -> None:
    limits = ["--train-limit", "4", "--test-limit", "2"]
    photo_runs.main(["--out", str(tmp_path), "--data", str(tmp_path), "--seeds", "3", "5", *limits])

    order = [(stage, asked.split, asked.seed) for stage, _, asked in requests]
    both = ("voc07_trainval", "voc07_test")
    expected = [(stage, split, 3) for stage in ("cam", "prompt", "propose") for split in both]
    for seed in (3, 5):
        trained = [(stage, split, seed) for stage in ("wsod", "retrain") for split in both]
        expected += [*trained[:2], ("pgt", both[0], seed), *trained[2:]]
    assert order == expected
    assert {asked.limit for _, _, asked in requests if asked.split == both[1]} == {2}

    wsod = next(asked for stage, _, asked in requests if (stage, asked.split) == ("wsod", both[1]))
    assert wsod.run == tmp_path / "default" / "s3"
    assert wsod.overrides["proposals"] == tmp_path / "proposals" / "propose" / both[1] / "proposals.h5"
    assert table[table.index("--bounds") + 1 :][:2] == [
        str(tmp_path / "bound" / "s3"),
        str(tmp_path / "bound" / "s5"),
    ]


def test_main__settings_of_a_variant(
    tmp_path: Path, requests: list[tuple[str, Any, Request]], table: list[str]
) -> None:
    variant = ["--name", "short", "--set", "wsod.epochs=2", "--no-bound", "--seeds", "0", "--stages", "wsod"]
    photo_runs.main(["--out", str(tmp_path), "--data", str(tmp_path), *variant])
    assert {config.epochs for stage, config, _ in requests if stage == "wsod"} == {2}
    assert {asked.run for stage, _, asked in requests if stage == "wsod"} == {tmp_path / "short" / "s0"}
    assert "--bounds" not in table


def test_main__a_wrong_setting_stops_before_the_first_stage(
    tmp_path: Path, requests: list[tuple[str, Any, Request]]
) -> None:
    with pytest.raises(ConfigError, match="epochz"):
        photo_runs.main(["--out", str(tmp_path), "--data", str(tmp_path), "--set", "retrain.epochz=2"])
    assert not requests
