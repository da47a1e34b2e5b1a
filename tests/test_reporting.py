"""What a run shows of itself: progress in images, closing lines with the next command, tables as wide as needed."""

from __future__ import annotations

import io
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from stages.core.artifacts.manifest import Manifest
from stages.core.runtime import reporting
from stages.core.runtime.execute import Outcome
from stages.core.runtime.parts import PART_SIZE
from stages.core.runtime.reporting import progress_reporter
from stages.core.spec import Plan, Role, Work
from tests.command_builder import run
from tests.run_builder import build_run, draw_toy_data
from weaksam_cli.options import Options
from weaksam_cli.outcomes import next_command
from weaksam_cli.tables import print_run_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Messages(logging.Handler):
    """Keeps messages, and says when there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.any = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.any.set()


def test_lines__count_images_not_parts_and_do_not_wait_for_a_slow_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "LINE_EVERY_SECONDS", 0.001)
    logger, kept = logging.Logger("test", logging.INFO), Messages()
    logger.addHandler(kept)
    work = Work("propose", total=40, each=PART_SIZE, before=PART_SIZE)
    last = ""
    for number in progress_reporter(logger, enabled=True)(iter(range(2)), work):
        kept.any.clear()
        assert kept.any.wait(10), "no line while a part is at work"
        last = kept.messages[-1]
        assert last.startswith(f"propose: {PART_SIZE * (number + 1)}/40 images, "), last
    assert "images/s, " in last
    assert last.endswith(" left")
    assert kept.messages[0].endswith(" so far")


def test_bar__counts_images_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    shown = progress_reporter(logging.getLogger("test"), enabled=True)
    assert list(shown("abc", Work("propose", 40, each=PART_SIZE))) == ["a", "b", "c"]
    assert "40/40" in terminal.getvalue()
    assert "images/s" in terminal.getvalue()


def outcome(stage: str, split: str, *, finished: bool = True) -> Outcome:
    manifest = Manifest(stage, split, {}, 0, "0", None, []) if finished else None
    return Outcome("done", Path("runs/a") / stage / split, Plan(3), manifest)


@pytest.mark.parametrize(
    ("stage", "role", "more", "expected"),
    [
        ("cam", "train", {}, "weaksam prompt --split a_train"),
        ("cam", "test", {"run": Path("runs/b c")}, "weaksam prompt --split a_test --run 'runs/b c'"),
        ("wsod", "train", {"recipe": "shapes"}, "weaksam pgt --split a_train --recipe shapes"),
        # nothing reads the detections of a test split
        ("wsod", "test", {}, "weaksam evaluate runs/a/wsod/a_test/detections.json --split a_test"),
        ("wsis", "train", {}, "weaksam evaluate runs/a/wsis/a_train/segmentations.json --split a_train"),
        # no stage looks into a folder of the user's own
        ("cam", "train", {"out": Path("here")}, ""),
    ],
)
def test_next_command__is_what_goes_on_from_here(
    stage: str, role: Role, more: dict[str, Any], expected: str
) -> None:
    split = f"a_{role}"
    assert next_command(stage, role, Options(split=split, **more), outcome(stage, split)) == expected


def test_next_command__none_where_nothing_was_finished() -> None:
    unfinished = outcome("cam", "a_train", finished=False)
    assert next_command("cam", "train", Options(split="a_train"), unfinished) == ""


def test_stage_command__ends_with_what_was_made_and_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, folder = tmp_path / "data", tmp_path / "run"
    draw_toy_data(root, train=2, test=1)
    build_run(folder, root, "toy_train", ["wsod"])
    where = ("--run", str(folder), "--data", str(root))
    command = ("-q", "pgt", "--split", "toy_train", *where, "--device", "cpu")
    assert run(*command) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("pgt: done, 2 images in ")
    assert "  made: pgt.json" in others
    assert others[-1] == f"  next: weaksam retrain --split toy_train --run {folder} --data {root}"
    assert run(*command, "--resume", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["status"], printed["next"]) == ("already done", others[-1].removeprefix("  next: "))


def test_tables__piped_have_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {f"metric_of_a_long_name_{number}": 0.5 for number in range(9)}
    row = {"stage": "wsod", "split": "a_train", "task": "detections", "metrics": metrics, "wall_seconds": 3.0}
    print_run_table({"run": "r", "rows": [row]})
    lines = [line for line in capsys.readouterr().out.splitlines() if "wsod" in line]
    assert all(name in lines[0] for name in metrics)
