"""The output folder before the work: may this run start, continue or replace what is there?

Nothing is ever overwritten silently: a folder that holds anything needs ``--resume``, which compares what the run
there was made with, or ``--overwrite``, which removes what this stage writes and nothing else.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.artifacts.files import disk_faults, read_json
from stages.core.artifacts.manifest import MANIFEST_NAME, InputRecord, Manifest, read_manifest
from stages.core.config import StageConfig
from stages.core.errors import OutputExistsError
from stages.core.runtime.request import Request
from stages.core.spec import StageSpec

if TYPE_CHECKING:
    from stages.core.datasets.split import WeakSplit

STATE_FILE = "state/run.json"
SETTINGS_FILE = "resolved.yaml"
FOLDERS = ("parts", "state", "viz")
OWNED = (MANIFEST_NAME, *FOLDERS, "metrics.jsonl", "events.log")
"""What every stage writes beside its outputs and its settings."""

RunIdentity = dict[str, Any]
"""Everything that decides what a run writes, as JSON; runs of equal identity may continue one another."""


def run_identity(
    stage: StageSpec,
    config: StageConfig,
    split: WeakSplit,
    request: Request,
    inputs: dict[str, InputRecord],
) -> RunIdentity:
    """Return what the output of this run depends on."""
    return {
        "stage": stage.name,
        "split": split.name,
        "config": json.loads(config.model_dump_json()),
        "seed": request.seed,
        "limit": request.limit,
        "split_fingerprint": split.fingerprint,
        "inputs": {name: record.sha256 for name, record in inputs.items()},
    }


@dataclass(frozen=True)
class OutputState:
    """What may happen to an output folder.

    Attributes:
        finished: Manifest of the same run, if nothing is left to do.
        replace: Whether what is there must be removed first.
    """

    finished: Manifest | None = None
    replace: bool = False


def examine_output(out: Path, identity: RunIdentity, request: Request) -> OutputState:
    """Decide between starting, continuing and refusing; changes nothing.

    Raises:
        OutputExistsError: the folder holds something that the request does not allow to touch.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError("the output folder is a file", where=out, hint="give another --out")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not names:
        return OutputState()
    saved = _saved_identity(out)
    if saved == identity:
        if request.resume:
            finished = (out / MANIFEST_NAME).is_file()
            return OutputState(finished=read_manifest(out) if finished else None)
        if request.sharded and not request.overwrite:
            return OutputState()  # shards of one run share a folder
    if not request.overwrite:
        raise _refusal(out, saved, identity, request)
    _check_replaceable(out, names, made_by_a_run=saved is not None or SETTINGS_FILE in names)
    return OutputState(replace=True)


def clear_output(out: Path, stage: StageSpec) -> None:
    """Remove what this stage writes and nothing else; the manifest first, so that a kill leaves it unfinished."""
    # The settings go last: a folder that has them is a run's, however far this came.
    owned = [*OWNED, *(output.file_name for output in stage.outputs), SETTINGS_FILE]
    with disk_faults(out):
        for name in owned:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _saved_identity(out: Path) -> RunIdentity | None:
    """Return what the run in a folder was made with, from its manifest or from its state."""
    if (out / MANIFEST_NAME).is_file():
        made = read_manifest(out)
        return {
            "stage": made.stage,
            "split": made.split,
            "config": made.config,
            "seed": made.seed,
            "limit": made.limit,
            "split_fingerprint": made.split_fingerprint,
            "inputs": {name: record.sha256 for name, record in made.inputs.items()},
        }
    if (out / STATE_FILE).is_file():
        loaded = read_json(out / STATE_FILE)
        return loaded if isinstance(loaded, dict) else None
    return None


def _check_replaceable(out: Path, names: set[str], *, made_by_a_run: bool) -> None:
    foreign = [] if made_by_a_run else sorted(names.intersection(FOLDERS))
    if foreign:
        raise OutputExistsError(
            f"holds {', '.join(foreign)}, where this stage has folders of its own, but no run made them",
            where=out,
            hint="give another --out, or move them away",
        )


def _refusal(
    out: Path, saved: RunIdentity | None, identity: RunIdentity, request: Request
) -> OutputExistsError:
    """Say what is in the way, and the options that would allow it."""
    if saved is None:
        return OutputExistsError(
            "the folder holds something else",
            where=out,
            hint="give an empty --out, or --overwrite to replace only what this stage writes there",
        )
    if request.resume:
        return OutputExistsError(
            f"cannot resume: made with other {'; '.join(_differences(saved, identity))}",
            where=out,
            hint="use --overwrite to start from scratch",
        )
    state = "a finished" if (out / MANIFEST_NAME).is_file() else "an unfinished"
    return OutputExistsError(
        f"holds {state} run",
        where=out,
        hint="add --resume to continue it, or --overwrite to start from scratch",
    )


def _differences(saved: RunIdentity, identity: RunIdentity) -> list[str]:
    """Name what differs between a saved run and this one; settings and inputs one by one."""
    found = []
    for key in (key for key in identity if saved.get(key) != identity[key]):
        old, new = saved.get(key), identity[key]
        if key == "split_fingerprint":
            found.append("images or tags")
        elif key == "config" and isinstance(old, dict):
            shown = [
                f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
                for name in _unequal(old, new)
            ]
            found.append(f"settings ({', '.join(shown)})")
        elif key == "inputs" and isinstance(old, dict):
            found.append(f"inputs ({', '.join(_unequal(old, new))})")
        else:
            found.append(f"{key} ({old} -> {new})")
    return found


def _unequal(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]
