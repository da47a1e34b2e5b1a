"""What one run of a stage is asked for beside the stage's own settings, and the machine it gets."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from stages.core.errors import UsageError
from stages.core.runtime import processes
from stages.core.runtime.device import Precision, available_cores, resolve_device, resolve_precision
from stages.core.spec import StageSpec

MOST_LOADERS = 8
"""Processes that load batches by default; as many feed the fastest training step, that of the classifier."""


@dataclass(frozen=True)
class Request:
    """One run of a stage on a split, as the command line or a program asks for it.

    Attributes:
        split: Name of the split.
        run: Run folder.
        data: Folder of data sets.
        out: Output folder; None is ``<run>/<stage>/<split>``.
        overrides: Input files given by hand, by the name of the input.
        limit: Take only the first images, in id order.
        classes: Restrict the data set to these classes; none = all.
        shard: (index, count) of the parts of map-style work that this process takes.
        resume: Continue from what an earlier run with the same settings and inputs left.
        overwrite: Replace what this stage wrote before. With ``resume``: unless that can be continued.
        save_every: Seconds between saved states of a training.
        log_every: Steps between the lines of ``metrics.jsonl``.
        dry_run: Check everything, do nothing.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        deterministic: Use deterministic algorithms; None = on a CPU, where they cost nothing, but not on a GPU.
        seed: Seed of everything random.
        workers: Processes for map-style work, and for loading the batches of a training ahead; 0 = in this process,
            None = by the machine: all cores for map-style work of the CPU, none for that of a GPU, and for loading the
            cores beside the one that trains.
        max_failures: Images that may fail: a count, or a percentage such as ``5%``.
        verbosity: -1 warnings, 0 info, 1 debug; None: log as the calling program does.
        show_progress: Show how far the work is.
    """

    split: str
    run: Path
    data: Path
    out: Path | None = None
    overrides: dict[str, Path] = field(default_factory=dict)
    limit: int | None = None
    classes: tuple[str, ...] = ()
    shard: tuple[int, int] = (0, 1)
    resume: bool = False
    overwrite: bool = False
    save_every: float = 120.0
    log_every: int = 20
    dry_run: bool = False
    device: str = "cpu"
    precision: str = "fp32"
    deterministic: bool | None = None
    seed: int = 0
    workers: int | None = 0
    max_failures: str = "5%"
    verbosity: int | None = 0
    show_progress: bool = True

    @property
    def sharded(self) -> bool:
        """Whether this run does a part of the work alone."""
        return self.shard[1] > 1

    def folder(self, stage: str) -> Path:
        """Return the output folder of a stage."""
        return self.out or stage_folder(self.run, stage, self.split)


def stage_folder(run: Path, stage: str, split: str) -> Path:
    """Return where a stage writes by default: ``<run>/<stage>/<split>``."""
    return run / stage / split


@dataclass(frozen=True)
class Machine:
    """What a run computes with; fields as in :class:`stages.core.spec.StageContext`."""

    device: str
    precision: Precision
    workers: int
    loaders: int
    deterministic: bool


def join_machine(request: Request, stage: StageSpec) -> Machine:
    """Find out what ``auto`` stands for here, and join the other processes of the launch, if there are any.

    A stage that uses no device gets the CPU, whatever device was asked for.

    Raises:
        UsageError: no such device or precision, or shards within a launch of several processes.
        EnvironmentFault: the device is not there.
    """
    device = resolve_device(request.device)
    precision = resolve_precision(request.precision, device)
    if not stage.uses_device:
        device, precision = "cpu", "fp32"
    workers = loaders = request.workers
    if workers is None or loaders is None:
        workers = available_cores() if device == "cpu" else 0
        # Elsewhere system libraries do not survive the fork.
        loaders = max(0, min(available_cores() - 1, MOST_LOADERS)) if sys.platform == "linux" else 0
    processes.join(device)
    if request.sharded and processes.world() > 1:
        raise UsageError(
            f"{processes.world()} processes share the work already",
            where="--shard",
            hint="use shards in separate jobs, or one launch with several processes",
        )
    deterministic = request.deterministic
    if deterministic is None:
        deterministic = not device.startswith("cuda")
    return Machine(device, precision, workers, loaders, deterministic)


def check_request(request: Request) -> None:
    """Refuse what cannot be meant, before anything is opened.

    Raises:
        UsageError: a limit below one image, or an unreadable number of failures.
    """
    if request.limit is not None and request.limit < 1:
        raise UsageError("expected at least 1", where="--limit")
    failure_limit(request.max_failures, 0)


def failure_limit(text: str, images: int) -> int:
    """Read ``--max-failures``: a count, or a percentage of the images such as ``5%``.

    Raises:
        UsageError: neither.
    """
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if value < 0:
        raise UsageError(f"'{text}' is neither a count nor a percentage", where="--max-failures")
    return int(value * images / 100) if text.endswith("%") else int(value)
