"""One run of a stage from start to finish, in nine steps.

Join the machine, open the split, find the inputs, hash them, examine the output folder, plan, claim the folder, work,
conclude. The order
is what makes a run folder trustworthy: inputs are hashed before anything is done, what the run is made with is written
before the work (``--resume`` compares it), the manifest last.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from stages.core.artifacts.files import remove_unfinished_writes
from stages.core.artifacts.manifest import MANIFEST_NAME, InputRecord, Manifest, write_manifest
from stages.core.config import StageConfig
from stages.core.datasets.checking.tags import tag_statistics
from stages.core.errors import EnvironmentFault, TooManyFailuresError, UsageError, WeakSamError
from stages.core.faults import known_fault
from stages.core.runtime import processes
from stages.core.runtime.device import peak_memory_mib
from stages.core.runtime.environment import command_line, environment_facts, git_state, package_version
from stages.core.runtime.inputs import check_inputs, find_inputs, weight_records
from stages.core.runtime.interrupts import catch_interrupts
from stages.core.runtime.output_guard import (
    MergeClaim,
    RunIdentity,
    check_still_there,
    claim_output,
    examine_output,
    identity_digest,
    run_identity,
)
from stages.core.runtime.ownership import Attempt, all_attempts, entered, note_attempt, since
from stages.core.runtime.reporting import MetricsFile, configure_logging, events_log, progress_reporter
from stages.core.runtime.request import Machine, Request, check_request, failure_limit, join_machine
from stages.core.runtime.seeding import seed_everything
from stages.core.spec import Counts, Plan, Stage, StageContext, StageSpec

if TYPE_CHECKING:
    from stages.core.datasets.split import WeakSplit

ConfigT = TypeVar("ConfigT", bound=StageConfig)
Status = Literal["done", "already done", "planned", "shard done", "done elsewhere"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: ``planned``: a dry run. ``shard done``: other shards have parts to do. ``done elsewhere``: what the
            processes other than the main one return.
        out: Output folder.
        plan: What the stage planned.
        manifest: That of the finished stage.
    """

    status: Status
    out: Path
    plan: Plan
    manifest: Manifest | None = None


def execute(
    stage: Stage[ConfigT],
    config: ConfigT,
    request: Request,
    split: WeakSplit | None = None,
    opened: Mapping[Path, Any] | None = None,
) -> Outcome:
    """Run one stage on one split; every process of a launch calls it, the main one writes.

    Args:
        stage: The stage.
        config: Its settings.
        request: Everything else that is asked for.
        split: Images that belong to no data set; None opens the split that the request names.
        opened: Files that the caller has opened already, by path; see :meth:`StageContext.open_once`.

    Raises:
        WeakSamError: any of the documented failures; the exit code is the class's.
    """
    check_request(request)
    machine = join_machine(request, stage.spec)
    split = _open_split(stage.spec, request, split)
    context = _context(stage.spec, split, request, machine)
    context.opened.update(opened or {})
    run = _identified(stage.spec, config, request, context)
    output = processes.from_main(lambda: examine_output(context.out, run.identity, request))
    plan = stage.plan(config, context)
    if request.dry_run:
        _check_problems(context, request.max_failures)
        return Outcome("planned", context.out, plan)
    with contextlib.ExitStack() as held:
        if output.finished is None:
            # Not before the plan: settings or inputs that cannot work must not cost a finished run.
            output = processes.from_main(
                lambda: claim_output(held, context.out, stage.spec, run.identity, request)
            )
        if output.finished is not None:
            _touch_manifest(context.out)
            _check_failures(context, output.finished, request.max_failures)
            return Outcome("already done", context.out, plan, output.finished)
        context.made_by = identity_digest(run.identity)
        merge = MergeClaim(held, context.out) if request.sharded else None
        if merge is not None:
            context.claim_merge_fn = merge.claim
        with _open_output(run):
            work = _work(stage, config, context)
            status, manifest = _conclude(run, work, merge)
    if manifest is not None:
        _check_failures(context, manifest, request.max_failures)
    return Outcome(status, context.out, plan, manifest)


@dataclass(frozen=True)
class _Run:
    """A run that is known by what it is made from.

    Attributes:
        stage: Declaration of the stage.
        context: What the stage may touch.
        inputs: Records of the input files, by name.
        identity: What the output depends on.
        limit: ``--limit``.
        classes: ``--classes``.
    """

    stage: StageSpec
    context: StageContext
    inputs: dict[str, InputRecord]
    identity: RunIdentity
    limit: int | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Work:
    """What the stage counted, and how long this attempt took."""

    counts: Counts
    attempt: Attempt


def _open_split(stage: StageSpec, request: Request, given: WeakSplit | None) -> WeakSplit:
    """Return the images to work on, cut to ``--limit``."""
    from stages.core.datasets.catalog import open_split

    # Opening a split may write it (the drawn set), so one process does it first.
    split = given or processes.from_main(
        lambda: open_split(request.split, request.data, classes=request.classes)
    )
    if request.limit is not None:
        split = split.limited(request.limit)
    if request.sharded and split.role not in stage.shardable:
        raise UsageError(f"{stage.name} trains on this split and cannot be sharded", where="--shard")
    return split


def _context(stage: StageSpec, split: WeakSplit, request: Request, machine: Machine) -> StageContext:
    """Return everything that the stage may touch; images that cannot be used have failed already."""
    log = configure_logging(request.verbosity)
    context = StageContext(
        split=split,
        run=request.run,
        out=request.folder(stage.name),
        inputs=find_inputs(stage, split, request),
        device=machine.device,
        precision=machine.precision,
        deterministic=machine.deterministic,
        seed=request.seed,
        workers=machine.workers,
        loaders=machine.loaders,
        shard=request.shard,
        resume=request.resume,
        save_every=request.save_every,
        log_every=request.log_every,
        progress_fn=progress_reporter(log, enabled=request.show_progress),
    )
    for problem in split.problems:
        context.failures.record(problem.id, problem.reason)
    return context


def _identified(stage: StageSpec, config: StageConfig, request: Request, context: StageContext) -> _Run:
    """Check and hash the inputs; with the settings and the split they identify the run."""
    inputs = dict(context.inputs)
    weights = config.weight_files(trains=context.trains)
    records = processes.from_main(
        lambda: check_inputs(stage, inputs, context.split, request) | weight_records(weights)
    )
    identity = run_identity(stage, config, context.split, request, records)
    return _Run(stage, context, records, identity, request.limit, request.classes)


def _touch_manifest(out: Path) -> None:
    """Make the manifest newer than what it depends on, for Make."""
    if processes.is_main():
        (out / MANIFEST_NAME).touch()


@contextlib.contextmanager
def _open_output(run: _Run) -> Iterator[None]:
    """For the time of the work, keep its log and metrics, catch signals, and tell faults of the machine from bugs."""
    context, out = run.context, run.context.out
    with contextlib.ExitStack() as cleanup:
        if processes.is_main():
            metrics = MetricsFile(out / "metrics.jsonl", fresh=not _learns(run))
            context.metrics_fn, context.rewind_metrics_fn = metrics.append, metrics.rewind
            cleanup.enter_context(events_log(context.log, out / "events.log"))
        context.interrupted_fn = cleanup.enter_context(catch_interrupts()).check
        cleanup.enter_context(_known_faults(out))  # inside of the log, which then says what it means
        yield


@contextlib.contextmanager
def _known_faults(out: Path) -> Iterator[None]:
    """Turn what any library raises for a fault of the machine into :class:`EnvironmentFault`."""
    try:
        yield
    except Exception as error:
        fault = known_fault(error, out)
        if fault is None or fault is error:
            raise
        raise fault from error


def _learns(run: _Run) -> bool:
    """Return whether the stage trains here, in steps that a resumed run continues."""
    role = run.context.split.role
    return any(
        output.kind in ("weights", "detector") and role in output.roles for output in run.stage.outputs
    )


def _work(stage: Stage[ConfigT], config: ConfigT, context: StageContext) -> _Work:
    """Run the stage, and collect the failures of all processes."""
    seed_everything(context.seed, context.deterministic)
    began = time.time()
    shard = "" if context.shard[1] == 1 else f", shard {context.shard[0]}/{context.shard[1]}"
    context.log.info(
        "%s: %s, %d images%s", stage.spec.name, context.split.name, len(context.split.ids), shard
    )
    _log_tags(stage.spec.name, context)
    finished = False
    try:
        counts = stage.run(config, context)
        finished = True
    finally:
        attempt = Attempt(began, since(began), peak_memory_mib(context.device, context.workers))
        if not finished and processes.is_main():
            with contextlib.suppress(WeakSamError, OSError):  # a full disk must not hide its own error
                note_attempt(context.out / "state", attempt)
    for entries in processes.gather(context.failures.entries):
        for image_id, reason in entries.items():
            context.failures.record(image_id, reason)
    return _Work(counts, attempt)


def _log_tags(stage: str, context: StageContext) -> None:
    """Say what was read of the data set: classes with their counts, how files were understood, what cannot be told."""
    if not processes.is_main():
        return
    for note in context.split.notes:
        context.log.info("%s: %s", stage, note)
    if context.split.has_tags:
        statistics = tag_statistics(context.split)
        context.log.info("%s: images of %s", stage, statistics.summary())
        for warning in statistics.warnings() if context.trains else ():
            context.log.warning("%s: %s", stage, warning)


def _conclude(run: _Run, work: _Work, merge: MergeClaim | None) -> tuple[Status, Manifest | None]:
    """Write the manifest if the outputs are there, and remove what only an unfinished run needs."""
    context, out = run.context, run.context.out
    if not processes.is_main():
        processes.wait_for_all()  # for the manifest
        return "done elsewhere", None
    check_still_there(out, run.identity)
    if merge is not None and not merge.claimed:
        with entered(out):
            if not (out / MANIFEST_NAME).is_file():
                note_attempt(out / "state", work.attempt)
        context.log.info("shard %d/%d done; other shards have parts to do", *context.shard)
        return "shard done", None
    missing = [name for name in _expected_outputs(run) if not (out / name).is_file()]
    if missing:
        raise EnvironmentFault(
            f"{', '.join(missing)} vanished while the stage worked",
            where=out,
            hint="find out by what, and run the stage again with --resume",
        )
    manifest = _manifest(run, work)
    with entered(out):
        write_manifest(out, manifest)
        for leftover in ("parts", "state"):
            shutil.rmtree(out / leftover, ignore_errors=True)
        remove_unfinished_writes(out)
    processes.wait_for_all()
    context.log.info("%s: done in %.0f s -> %s", run.stage.name, manifest.wall_seconds, out)
    return "done", manifest


def _expected_outputs(run: _Run) -> list[str]:
    """Return the files that the stage writes here.

    A checkpoint given by hand is applied to a train split as to a test split: what only a training makes is not
    expected then.
    """
    context = run.context
    names = run.stage.output_names(context.split.role)
    if context.split.role == "test" or context.trains:
        return list(names)
    applied = run.stage.output_names("test")
    return [name for name in names if name in applied or (context.out / name).is_file()]


def _manifest(run: _Run, work: _Work) -> Manifest:
    context, images = run.context, len(run.context.split.ids)
    total = all_attempts(context.out / "state", work.attempt)
    return Manifest(
        stage=run.stage.name,
        split=context.split.name,
        config=run.identity["config"],
        seed=context.seed,
        version=package_version(),
        git=git_state(),
        command=command_line(),
        inputs=run.inputs,
        split_fingerprint=context.split.fingerprint,
        outputs=dict.fromkeys(_expected_outputs(run), ""),
        environment=environment_facts(context.device)
        | {"precision": context.precision, "deterministic": str(context.deterministic).lower()},
        counts={"images": images, **work.counts, "failed": len(context.failures.entries)},
        failures=context.failures.as_list(),
        limit=run.limit,
        classes=list(run.classes),
        started=datetime.fromtimestamp(total.began, UTC).isoformat(timespec="seconds"),
        wall_seconds=round(total.seconds, 3),
        images_per_second=round(images / max(total.seconds, 1e-9), 3),
        peak_memory_mib=round(total.peak_memory_mib, 1),
    )


def _check_failures(context: StageContext, manifest: Manifest, max_failures: str) -> None:
    """Refuse a finished run with too many failures, each time it is asked for."""
    allowed = failure_limit(max_failures, len(context.split.ids))
    if len(manifest.failures) <= allowed:
        return
    if processes.is_main():
        # Older than anything it depends on, so that Make, too, asks again.
        os.utime(context.out / MANIFEST_NAME, (0, 0))
    raise _too_many("finished, but ", manifest.failures, allowed, context.out / MANIFEST_NAME)


def _check_problems(context: StageContext, max_failures: str) -> None:
    """Refuse a dry run over images of which too many cannot be used."""
    failures, allowed = context.failures.as_list(), failure_limit(max_failures, len(context.split.ids))
    if len(failures) > allowed:
        raise _too_many("", failures, allowed, context.split.name)


def _too_many(
    began: str, failures: list[dict[str, str]], allowed: int, where: Path | str
) -> TooManyFailuresError:
    first = "; ".join(f"{failure['id']}: {failure['reason']}" for failure in failures[:3])
    return TooManyFailuresError(
        f"{began}{len(failures)} images failed and --max-failures allows {allowed} ({first})",
        where=where,
        hint="fix the images (`weaksam data check` lists them) and add --overwrite, or raise --max-failures",
    )
