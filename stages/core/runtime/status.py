"""How far a run folder is: every step finished, stale, unfinished or missing, and the command to go on with.

Reads manifests and the ends of logs alone: no artifact is opened or hashed, so that a run of any size is described at
once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.core.artifacts.manifest import MANIFEST_NAME, Manifest, read_manifest
from stages.core.errors import WeakSamError
from stages.core.registry import chain_specs
from stages.core.spec import StageSpec

State = Literal["done", "failures", "stale", "running", "stopped", "damaged"]
QUIET_SECONDS = 180.0
"""A stage whose folder has not changed for so long is taken to have stopped."""


@dataclass(frozen=True)
class StepStatus:
    """One stage on one split.

    Attributes:
        stage: Its name.
        split: The split.
        state: ``failures``: done, but images failed. ``stale``: an input was made again since.
            ``stopped``: begun, and nothing has been written for a while.
        detail: How far, or why.
        command: What brings it up to date; empty if nothing is to be done.
    """

    stage: str
    split: str
    state: State
    detail: str = ""
    command: str = ""


def run_status(run: Path, now: float | None = None) -> list[StepStatus]:
    """Describe the steps of a run folder in the order of the chain, train splits first.

    Args:
        run: The run folder.
        now: Seconds since 1970; None is the present.
    """
    splits = [folder.name for stage in chain_specs() for folder in _folders(run / stage.name)]
    manifests: dict[tuple[str, str], Manifest] = {}
    found: list[StepStatus] = []
    for stage in chain_specs():
        for split in sorted(dict.fromkeys(splits), key=lambda name: ("train" not in name, name)):
            folder = run / stage.name / split
            if folder.is_dir():
                found.append(_step(stage, split, run, manifests, time.time() if now is None else now))
    return found


def _folders(folder: Path) -> Sequence[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []


def _step(
    stage: StageSpec, split: str, run: Path, manifests: dict[tuple[str, str], Manifest], now: float
) -> StepStatus:
    folder = run / stage.name / split
    command = f"weaksam {stage.name} --split {split} --run {run} --resume"
    if not (folder / MANIFEST_NAME).is_file():
        quiet = now - _last_change(folder)
        state: State = "running" if quiet < QUIET_SECONDS else "stopped"
        return StepStatus(
            stage.name, split, state, _progress(folder, quiet), "" if state == "running" else command
        )
    try:
        made = read_manifest(folder)
    except WeakSamError as error:
        return StepStatus(stage.name, split, "damaged", error.what, f"{command} --overwrite")
    manifests[stage.name, split] = made
    if why := _stale(stage, made, run, manifests):
        return StepStatus(stage.name, split, "stale", why, f"{command} --overwrite")
    missing = [name for name in made.outputs if not (folder / name).is_file()]
    if missing:
        return StepStatus(stage.name, split, "damaged", f"{missing[0]} is missing", f"{command} --overwrite")
    images = made.counts.get("images", 0)
    if made.failures:
        first = made.failures[0]
        detail = f"{len(made.failures)} of {images} images failed ({first['id']}: {first['reason']})"
        return StepStatus(stage.name, split, "failures", detail)
    return StepStatus(stage.name, split, "done", f"{images} images, {made.wall_seconds:.0f} s")


def _stale(stage: StageSpec, made: Manifest, run: Path, manifests: dict[tuple[str, str], Manifest]) -> str:
    """Why what a stage wrote no longer fits what it was made from; compares the hashes that manifests hold."""
    for name, record in made.inputs.items():
        parts = Path(record.path).parts
        maker = manifests.get((parts[0], parts[1])) if len(parts) == 3 else None
        if maker is None:
            if len(parts) == 3 and parts[0] != stage.name and not (run / record.path).is_file():
                return f"its {name}, {record.path}, is gone"
            continue
        if maker.outputs.get(parts[2], record.sha256) != record.sha256:
            return f"{parts[0]} has written another {parts[2]} since"
    return ""


def _last_change(folder: Path) -> float:
    return max((path.stat().st_mtime for path in [folder, *folder.rglob("*")] if path.exists()), default=0.0)


def _progress(folder: Path, quiet: float) -> str:
    """The last training step or the number of finished parts, and when that was."""
    parts = len(list((folder / "parts").rglob("*"))) if (folder / "parts").is_dir() else 0
    step = _last_step(folder / "metrics.jsonl")
    how_far = f"step {step}" if step is not None else f"{parts} parts" if parts else "begun"
    return f"{how_far}, {quiet / 60:.0f} min ago"


def _last_step(path: Path) -> int | None:
    if not path.is_file():
        return None
    for line in reversed(path.read_bytes()[-65_536:].splitlines()):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and type(values.get("step")) is int:
            return int(values["step"])
    return None
