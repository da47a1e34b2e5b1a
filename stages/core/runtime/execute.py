"""One stage run from start to finish: inputs, overwrite guard, work, manifest.

The order is what makes a run folder trustworthy: inputs are hashed first, the settings are written
before the work (so that ``--resume`` can compare them), the manifest last.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from stages.core.artifacts.files import disk_faults, read_json, write_json, write_text
from stages.core.artifacts.manifest import (
    MANIFEST_NAME,
    InputRecord,
    Manifest,
    check_input,
    read_manifest,
    write_manifest,
)
from stages.core.config import StageConfig
from stages.core.errors import (
    OutputExistsError,
    StaleInputError,
    TooManyFailuresError,
    UsageError,
)
from stages.core.runtime import processes
from stages.core.runtime.device import Precision, peak_memory_mib
from stages.core.runtime.environment import environment_facts, git_state, package_version
from stages.core.runtime.interrupts import catch_interrupts
from stages.core.runtime.reporting import configure_logging, events_handler, metrics_writer, progress_reporter
from stages.core.runtime.seeding import seed_everything
from stages.core.spec import Counts, FailureLog, InputSpec, Plan, Role, Stage, StageContext, StageSpec

if TYPE_CHECKING:
    from stages.core.datasets.split import WeakSplit

ConfigT = TypeVar("ConfigT", bound=StageConfig)
STATE_FILE = "state/run.json"
FOLDERS = ("parts", "state", "viz")
SETTINGS_FILE = "resolved.yaml"
OWNED = (MANIFEST_NAME, *FOLDERS, "metrics.jsonl", "events.log")


@dataclass(frozen=True)
class Request:
    """What the command line asked for beside the stage's own settings."""

    split: str
    run: Path
    data: Path
    out: Path | None = None
    overrides: dict[str, Path] = field(default_factory=dict)
    limit: int | None = None
    shard: tuple[int, int] = (0, 1)
    resume: bool = False
    overwrite: bool = False
    save_every: float = 120.0
    log_every: int = 20
    dry_run: bool = False
    device: str = "cpu"
    precision: Precision = "fp32"
    seed: int = 0
    workers: int = 0
    max_failures: str = "5%"
    verbosity: int = 0
    show_progress: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``done``, ``already done``, ``planned``, ``shard done`` or ``done elsewhere``.

    The last is what processes other than the main one report.
    """

    status: str
    out: Path
    plan: Plan
    manifest: Manifest | None = None


def stage_folder(run: Path, stage: str, split: str) -> Path:
    """Where a stage writes by default: ``<run>/<stage>/<split>``."""
    return run / stage / split


def execute(
    stage: Stage[ConfigT], config: ConfigT, request: Request, split: WeakSplit | None = None
) -> Outcome:
    """Run one stage on one split; every process of a launch calls it, the main one writes.

    Args:
        stage: The stage.
        config: Its settings.
        request: Everything else that was asked for.
        split: Images of no data set; None opens the split that the request names.

    Raises:
        WeakSamError: any of the documented failures; the exit code is the class's.
    """
    from stages.core.datasets.catalog import open_split

    spec = stage.spec
    if request.limit is not None and request.limit < 1:
        raise UsageError("expected at least 1", where="--limit")
    failure_limit(request.max_failures, 0)  # a word that cannot be read is said now, not after the stage
    processes.join(request.device)
    if request.shard[1] > 1 and processes.world() > 1:
        raise UsageError(
            f"{processes.world()} processes share the work already",
            where="--shard",
            hint="use shards in separate jobs, or one launch with several processes",
        )
    if split is None:
        # Opening a split may write it (the drawn set), so one process does it first.
        split = processes.from_main(lambda: open_split(request.split, request.data))
    if request.limit is not None:
        split = split.limited(request.limit)
    if request.shard[1] > 1 and split.role not in spec.shardable:
        raise UsageError(f"{spec.name} trains on this split and cannot be sharded", where="--shard")
    out = request.out or stage_folder(request.run, spec.name, request.split)
    inputs = _resolve_inputs(spec, split.role, split.train_split, request)
    context = StageContext(
        split=split,
        run=request.run,
        out=out,
        inputs=inputs,
        device=request.device,
        precision=request.precision,
        seed=request.seed,
        workers=request.workers,
        shard=request.shard,
        resume=request.resume,
        save_every=request.save_every,
        log_every=request.log_every,
        progress_fn=progress_reporter(configure_logging(request.verbosity), enabled=request.show_progress),
    )
    for problem in split.problems:
        context.failures.record(problem.id, problem.reason)
    hashes = processes.from_main(lambda: _input_records(spec, inputs, request, split))
    wanted = {
        "stage": spec.name,
        "split": split.name,
        "config": json.loads(config.model_dump_json()),
        "seed": request.seed,
        "limit": request.limit,
        "split_fingerprint": split.fingerprint,
        "inputs": {name: record.sha256 for name, record in hashes.items()},
    }
    finished, replaces = processes.from_main(lambda: _output_guard(out, wanted, request))
    plan = stage.plan(config, context)
    if request.dry_run:
        return Outcome("planned", out, plan)
    if replaces:
        # Not before the plan: settings or inputs that cannot work must not cost a finished run.
        processes.from_main(lambda: _clear(out, spec))
    if finished is not None:
        if processes.is_main():
            (out / MANIFEST_NAME).touch()  # so that Make sees it is newer than what it depends on
        return Outcome("already done", out, plan, finished)
    return _run(stage, config, context, wanted, hashes, plan, request)


def _resolve_inputs(stage: StageSpec, role: Role, train_split: str, request: Request) -> dict[str, Path]:
    specs = {spec.name: spec for spec in stage.inputs}
    for name in request.overrides:
        if name not in specs:
            raise UsageError(f"{stage.name} reads no {name}", where=f"--{name}")
    inputs: dict[str, Path] = {}
    for spec in stage.inputs:
        if spec.name in request.overrides:
            inputs[spec.name] = request.overrides[spec.name]
        elif role in spec.roles:
            name = train_split if spec.split == "train" else request.split
            inputs[spec.name] = stage_folder(request.run, spec.producer, name) / spec.file_name
    return inputs


def _input_records(
    stage: StageSpec, inputs: dict[str, Path], request: Request, split: WeakSplit
) -> dict[str, InputRecord]:
    specs: dict[str, InputSpec] = {spec.name: spec for spec in stage.inputs}
    run, records = request.run, {}
    for name, path in inputs.items():
        digest = check_input(path, run, specs[name].producer)
        _check_same_split(path, request, split)
        shown = path.relative_to(run).as_posix() if path.is_relative_to(run) else path.name
        records[name] = InputRecord(shown, digest)
    return records


def _check_same_split(path: Path, request: Request, split: WeakSplit) -> None:
    """Refuse a file made of a split of the same name that had other images, tags or classes."""
    if not (path.parent / MANIFEST_NAME).is_file():
        return
    made = read_manifest(path.parent)
    # With another --limit the images differ by intention.
    same = (made.split, made.limit) == (split.name, request.limit)
    if same and made.split_fingerprint not in ("", split.fingerprint):
        raise StaleInputError(
            f"made when {split.name} had other images, tags or classes",
            where=path,
            hint=f"run `weaksam {made.stage} --split {split.name} --overwrite` and what follows it again",
        )


def _output_guard(out: Path, wanted: dict[str, Any], request: Request) -> tuple[Manifest | None, bool]:
    """Decide between starting, resuming and refusing; changes nothing.

    Returns:
        the manifest if nothing is left to do, and whether what is there must go first.

    Raises:
        OutputExistsError: the folder holds something that the request does not allow to touch.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(
            "a file stands where the output folder goes", where=out, hint="give another --out"
        )
    names = {p.name for p in out.iterdir()} if out.is_dir() else set()
    if not names:
        return None, False
    saved = _saved_settings(out)
    same = saved is not None and saved == wanted
    if (out / MANIFEST_NAME).is_file() and same and request.resume:
        return read_manifest(out), False
    if request.shard[1] > 1 and same and not request.overwrite:
        return None, False  # shards of one run share a folder
    if same and request.resume:
        return None, False
    if request.overwrite:
        known = saved is not None or SETTINGS_FILE in names
        foreign = [] if known else sorted(names.intersection(FOLDERS))
        if foreign:
            raise OutputExistsError(
                f"holds {', '.join(foreign)}, where this stage has folders of its own, but no run made them",
                where=out,
                hint="give another --out, or move them away",
            )
        return None, True
    if saved is None:
        hint = "give an empty --out, or --overwrite to replace only what this stage writes there"
        raise OutputExistsError("the folder holds something else", where=out, hint=hint)
    if request.resume:
        raise OutputExistsError(
            f"cannot resume: made with other {'; '.join(_differences(saved, wanted))}",
            where=out,
            hint="use --overwrite to start anew",
        )
    state = "finished" if (out / MANIFEST_NAME).is_file() else "unfinished"
    raise OutputExistsError(
        f"holds a{'n' if state[0] == 'u' else ''} {state} run",
        where=out,
        hint="add --resume to go on, or --overwrite to start anew",
    )


def _differences(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What a run was made with and is asked for now, in words; settings and inputs one by one."""
    found = []
    for key in (key for key in wanted if saved.get(key) != wanted[key]):
        old, new = saved.get(key), wanted[key]
        if key == "split_fingerprint":
            found.append("images or tags")
        elif key == "config" and isinstance(old, dict):
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            shown = [f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}" for name in names]
            found.append(f"settings ({', '.join(shown)})")
        elif key == "inputs" and isinstance(old, dict):
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            found.append(f"inputs ({', '.join(names)})")
        else:
            found.append(f"{key} ({old} -> {new})")
    return found


def _saved_settings(out: Path) -> dict[str, Any] | None:
    if (out / MANIFEST_NAME).is_file():
        m = read_manifest(out)
        return {
            "stage": m.stage,
            "split": m.split,
            "config": m.config,
            "seed": m.seed,
            "limit": m.limit,
            "split_fingerprint": m.split_fingerprint,
            "inputs": {n: r.sha256 for n, r in m.inputs.items()},
        }
    if (out / STATE_FILE).is_file():
        loaded = read_json(out / STATE_FILE)
        return loaded if isinstance(loaded, dict) else None
    return None


def _clear(out: Path, stage: StageSpec) -> None:
    """Remove what this stage writes and nothing else; the manifest first, so a kill leaves it unfinished."""
    # The settings go last: a folder that has them is a run's, however far this came.
    owned = [*OWNED, *(output.file_name for output in stage.outputs), SETTINGS_FILE]
    with disk_faults(out):
        for name in owned:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _run(
    stage: Stage[ConfigT],
    config: ConfigT,
    context: StageContext,
    wanted: dict[str, Any],
    hashes: dict[str, InputRecord],
    plan: Plan,
    request: Request,
) -> Outcome:
    spec, out = stage.spec, context.out
    with contextlib.ExitStack() as cleanup:
        if processes.is_main():
            write_json(out / STATE_FILE, wanted)
            write_text(out / SETTINGS_FILE, yaml.safe_dump({spec.name: wanted["config"]}, sort_keys=False))
            context.metrics_fn = metrics_writer(out / "metrics.jsonl")
            handler = events_handler(out / "events.log")
            context.log.addHandler(handler)
            cleanup.callback(handler.close)
            cleanup.callback(context.log.removeHandler, handler)
        flag = cleanup.enter_context(catch_interrupts())
        context.interrupted_fn = flag.check
        cleanup.enter_context(disk_faults(out))
        seed_everything(request.seed)
        started, clock = datetime.now(UTC), time.monotonic()
        context.log.info("%s: %s, %d images", spec.name, context.split.name, len(context.split.ids))
        counts = stage.run(config, context)
        seconds = time.monotonic() - clock
        for entries in processes.gather(context.failures.entries):
            for image_id, reason in entries.items():
                context.failures.record(image_id, reason)
        if not processes.is_main():
            processes.wait_for_all()  # for the manifest
            return Outcome("done elsewhere", out, plan)
        outputs = _expected_outputs(spec, context)
        if not all((out / name).is_file() for name in outputs):
            context.log.info("shard %d/%d done; other shards have parts to do", *context.shard)
            return Outcome("shard done", out, plan)
        manifest = _manifest(spec, context, wanted, hashes, counts, request)
        manifest.started, manifest.wall_seconds = started.isoformat(timespec="seconds"), round(seconds, 3)
        manifest.images_per_second = round(len(context.split.ids) / max(seconds, 1e-9), 3)
        write_manifest(out, manifest)
        processes.wait_for_all()
        for leftover in ("parts", "state"):
            shutil.rmtree(out / leftover, ignore_errors=True)
        context.log.info("%s: done in %.0f s -> %s", spec.name, seconds, out)
    _check_failures(context.failures, len(context.split.ids), request, out)
    return Outcome("done", out, plan, manifest)


def _expected_outputs(stage: StageSpec, context: StageContext) -> list[str]:
    """Files that the stage writes here.

    A checkpoint given by hand is applied to a train split as to a test split: what only a training makes is not
    expected then.
    """
    names = stage.output_names(context.split.role)
    if context.split.role == "test" or context.trains:
        return list(names)
    return [name for name in names if name in stage.output_names("test") or (context.out / name).is_file()]


def _manifest(
    stage: StageSpec,
    context: StageContext,
    wanted: dict[str, Any],
    hashes: dict[str, InputRecord],
    counts: Counts,
    request: Request,
) -> Manifest:
    return Manifest(
        stage=stage.name,
        split=context.split.name,
        config=wanted["config"],
        seed=request.seed,
        version=package_version(),
        git=git_state(),
        command=["weaksam", *sys.argv[1:]],
        inputs=hashes,
        split_fingerprint=context.split.fingerprint,
        outputs=dict.fromkeys(_expected_outputs(stage, context), ""),
        environment=environment_facts(context.device),
        counts={"images": len(context.split.ids), **counts, "failed": len(context.failures.entries)},
        failures=context.failures.as_list(),
        limit=request.limit,
        peak_memory_mib=round(peak_memory_mib(context.device), 1),
    )


def failure_limit(text: str, images: int) -> int:
    """Read ``--max-failures``: a count, or a share of the images such as ``5%``.

    Raises:
        UsageError: neither.
    """
    number = text.removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if value < 0:
        raise UsageError(f"'{text}' is neither a count nor a percentage", where="--max-failures")
    return int(value * images / 100) if text.endswith("%") else int(value)


def _check_failures(failures: FailureLog, images: int, request: Request, out: Path) -> None:
    allowed, found = failure_limit(request.max_failures, images), len(failures.entries)
    if found > allowed:
        first = "; ".join(f"{e['id']}: {e['reason']}" for e in failures.as_list()[:3])
        raise TooManyFailuresError(
            f"finished, but {found} images failed and --max-failures allows {allowed} ({first})",
            where=out / MANIFEST_NAME,
            hint="mend the images, or raise --max-failures",
        )
