"""The output folder before the work: may this run start, continue or replace what is there?

Nothing is ever overwritten silently: a folder that holds anything needs ``--resume``, which compares what the run
there was made with, or ``--overwrite``, which removes what this stage writes and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stages.core.artifacts.files import (
    TEMPORARY,
    disk_faults,
    read_json,
    remove_unfinished_writes,
    write_json,
    write_text,
)
from stages.core.artifacts.manifest import (
    MANIFEST_NAME,
    RUN_RECORD,
    InputRecord,
    Manifest,
    changed_outputs,
    read_manifest,
)
from stages.core.config import StageConfig
from stages.core.errors import EnvironmentFault, InputError, OutputExistsError, SchemaError
from stages.core.runtime.ownership import (
    LOCK_PREFIX,
    Attempt,
    Owner,
    busy,
    ended,
    entered,
    lock_path,
    note_attempt,
    owners,
    take,
    this_process,
)
from stages.core.runtime.request import Request
from stages.core.spec import StageSpec

if TYPE_CHECKING:
    from stages.core.datasets.split import WeakSplit

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


def identity_digest(identity: RunIdentity) -> str:
    """Return a short name of everything a run depends on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


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
    names = {name for name in names if not (name.startswith(LOCK_PREFIX) or TEMPORARY in name)}
    if not names:
        return OutputState()
    try:
        return _examine_run(out, names, identity, request)
    except SchemaError as damage:
        # The record of what the run was made with: nothing to continue from, and no reason to keep the folder.
        if not request.overwrite:
            raise OutputExistsError(
                f"the record of the run here is damaged ({damage.what})",
                where=damage.where,
                hint="use --overwrite to start from scratch",
            ) from damage
        _check_replaceable(out, names, made_by_a_run=True)
        return OutputState(replace=True)


def _examine_run(out: Path, names: set[str], identity: RunIdentity, request: Request) -> OutputState:
    saved = _saved_identity(out)
    if saved is None and SETTINGS_FILE in names and names <= {SETTINGS_FILE, "state"}:
        return OutputState(replace=True)  # a run that was killed as it began
    if saved == identity:
        finished = read_manifest(out) if (out / MANIFEST_NAME).is_file() else None
        changed = [] if finished is None else changed_outputs(out, finished)
        if request.resume or (request.sharded and not request.overwrite):  # shards of one run share a folder
            if not changed:
                return OutputState(finished=finished)
            if not request.overwrite:
                raise OutputExistsError(
                    f"finished, but {', '.join(changed)} changed since: missing, cut or written by something else",
                    where=out,
                    hint="put it back, or add --overwrite to do the stage again",
                )
    if not request.overwrite:
        raise _refusal(out, saved, identity, request)
    _check_replaceable(out, names, made_by_a_run=saved is not None or SETTINGS_FILE in names)
    return OutputState(replace=True)


def claim_output(
    held: contextlib.ExitStack, out: Path, stage: StageSpec, identity: RunIdentity, request: Request
) -> OutputState:
    """Make the folder this run's own, as long as `held` is open: examined again, cleared, and with its record.

    Raises:
        OutputExistsError: see :func:`examine_output`, or another process works there.
    """
    made_by = identity_digest(identity)
    with entered(out):
        others = _live_owners(out)
        companions = [o for o in others if o.made_by == made_by and _parts_company(o, request)]
        state = OutputState() if companions else examine_output(out, identity, request)
        if state.finished is not None:
            return state
        for owner in others:
            if owner not in companions:
                raise busy(out, owner)
        lock = take(lock_path(out, request.shard), this_process(made_by, request.shard))
        if isinstance(lock, Owner):
            raise busy(out, lock)
        held.callback(lock.release)
        if state.replace:
            clear_output(out, stage)
        if not companions:
            remove_unfinished_writes(out)
            # The settings first: a folder that has them is a run's, however far this came.
            settings = {stage.name: identity["config"]}
            write_text(out / SETTINGS_FILE, yaml.safe_dump(settings, sort_keys=False))
            write_json(out / RUN_RECORD, identity)
    return state


class MergeClaim:
    """The right to merge the parts of all shards, which one process gets.

    Args:
        held: As long as it is open, no other process gets the right.
        out: Output folder.
    """

    def __init__(self, held: contextlib.ExitStack, out: Path) -> None:
        self.claimed = False
        self._held, self._out = held, out

    def claim(self) -> bool:
        """Return whether this process has the right, now or from before."""
        if not self.claimed:
            lock = take(self._out / f"{LOCK_PREFIX}merge", this_process())
            if isinstance(lock, Owner):
                return False
            self._held.callback(lock.release)
            self.claimed = True
        return True


def check_still_there(out: Path, identity: RunIdentity) -> None:
    """Check that the folder is still the one that this run, or a shard of it, has made its own.

    Raises:
        EnvironmentFault: removed, or replaced by another run.
    """
    try:
        saved = _saved_identity(out)
    except InputError:
        saved = None
    if saved != identity:
        raise EnvironmentFault(
            "the output folder was removed or replaced while the stage worked",
            where=out,
            hint="find out by what, and run the stage again",
        )


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


def _live_owners(out: Path) -> list[Owner]:
    """Return who works in a folder; the locks of those that have ended are removed, and their time is noted."""
    live = []
    for path, owner in owners(out).items():
        if not ended(path, owner):
            live.append(owner)
            continue
        with contextlib.suppress(OSError):
            note_attempt(out / "state", Attempt(owner.since, path.stat().st_mtime - owner.since))
            path.unlink()
    return live


def _parts_company(owner: Owner, request: Request) -> bool:
    """Return whether an owner and this request are different shards of the same cut."""
    return request.sharded and owner.shard[1] == request.shard[1] and owner.shard[0] != request.shard[0]


def _saved_identity(out: Path) -> RunIdentity | None:
    """Return what the run in a folder was made with, from its manifest or from its state.

    Raises:
        SchemaError: the record is damaged.
    """
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
    if (out / RUN_RECORD).is_file():
        loaded = read_json(out / RUN_RECORD)
        if not isinstance(loaded, dict):
            raise SchemaError("not the record of a run", where=out / RUN_RECORD)
        return loaded
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
