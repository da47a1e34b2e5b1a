"""What a stage is, on one page: its declaration, what it may touch, and the protocol it keeps.

A stage package offers ``SPEC`` in ``spec.py``, the declaration of the files it reads and writes, and ``STAGE`` in
``stage.py``, with ``plan`` (check what can be checked without work) and ``run``. Everything a stage may touch arrives
in a :class:`StageContext`; what it sees of the data is a ``WeakSplit``: images and tags, never boxes.

Imports nothing but the standard library: declarations are read by ``--help`` and by Make.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

from stages.core.errors import MissingInputError

if TYPE_CHECKING:
    from stages.core.datasets.split import WeakSplit

T = TypeVar("T")
ConfigT_contra = TypeVar("ConfigT_contra", contravariant=True)
Role = Literal["train", "test"]
Counts = dict[str, int | float]
ArtifactKind = Literal[
    "weights", "detector", "cams", "prompts", "proposals", "detections", "pgt", "segmentations", "predictions"
]
"""What a file holds. ``detector``: weights of a model that finds boxes in an image alone; ``weights``: any other's."""

BOTH: tuple[Role, ...] = ("train", "test")


@dataclass(frozen=True)
class InputSpec:
    """A file a stage reads.

    Attributes:
        name: What the stage calls it; also its flag (``--proposals``).
        producer: Stage that writes it.
        file_name: Name inside the producer's folder.
        split: ``own`` = the folder of the split at work, ``train`` = that of its train split.
        roles: Roles of the split for which the file is needed. An explicit path is used in any role.
        optional: Whether the stage does without where the run folder has no such file.
        help: What its flag says where it is no file of a run; then ``producer`` is empty and ``roles`` are none.
    """

    name: str
    producer: str
    file_name: str
    split: Literal["own", "train"] = "own"
    roles: tuple[Role, ...] = BOTH
    optional: bool = False
    help: str = ""


@dataclass(frozen=True)
class OutputSpec:
    """A file a stage writes.

    Attributes:
        file_name: Name inside the stage's folder.
        kind: What it holds; for all but weights also the task of ``weaksam evaluate`` that measures it.
        roles: Roles of the split on which it is written.
        title: Heading of its pictures in the report; empty where the content brings headings of its own.
    """

    file_name: str
    kind: ArtifactKind
    roles: tuple[Role, ...] = BOTH
    title: str = ""


@dataclass(frozen=True)
class StageSpec:
    """The declaration of a stage: what flags, Make, evaluation, report and execution know about it.

    Attributes:
        name: Name of the stage, its subcommand, its package and its section in settings files.
        summary: One sentence for ``--help``.
        inputs: Files read, in the order in which they are looked for.
        outputs: Files written, in the order in which they are listed.
        uses_device: Whether it computes on the device of the run (``--device``). A stage that does not works on the
            CPU, by default in as many processes as there are cores, on a machine with GPUs, too.
        shardable: Roles for which the work is a map over images and may be cut into shards.
    """

    name: str
    summary: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    uses_device: bool
    shardable: tuple[Role, ...] = ()

    def output_names(self, role: Role) -> tuple[str, ...]:
        """Return the names of the files written on a split of this role."""
        return tuple(output.file_name for output in self.outputs if role in output.roles)


@dataclass
class FailureLog:
    """Images that could not be processed, with the reason; never a reason to stop by themselves."""

    entries: dict[str, str] = field(default_factory=dict)

    def record(self, image_id: str, reason: str) -> None:
        """Remember the first reason given for an image."""
        self.entries.setdefault(image_id, reason)

    def as_list(self) -> list[dict[str, str]]:
        """Sorted by image id, for the manifest."""
        return [{"id": i, "reason": r} for i, r in sorted(self.entries.items())]


@dataclass(frozen=True)
class Work:
    """What an iteration does, for those who watch it.

    Attributes:
        label: What is done.
        total: How much of it there is, in units.
        unit: What is counted.
        each: Units that one item of the iteration stands for; the last may be fewer.
        images_each: Images that one unit stands for.
        before: Units that an interrupted run has done before.
    """

    label: str
    total: int
    unit: str = "images"
    each: int = 1
    images_each: int = 1
    before: int = 0


ProgressFn = Callable[[Iterable[Any], Work], Iterator[Any]]


def _silent(iterable: Iterable[Any], work: Work) -> Iterator[Any]:
    return iter(iterable)


@dataclass
class StageContext:
    """Everything a stage may touch beside its settings.

    Attributes:
        split: Images and tags; cannot return boxes or masks.
        run: Run folder.
        out: This stage's output folder for this split.
        inputs: Resolved input files by name.
        device: Torch device string, e.g. ``cpu`` or ``cuda:0``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        deterministic: Whether torch's deterministic algorithms are used.
        seed: Seed of everything random.
        workers: Processes for map-style work; 0 = in this process.
        loaders: Processes that load the batches of a training ahead; 0 = each where it is needed.
        shard: (index, count) of the parts this process takes.
        resume: Continue from parts and training state found in ``out``.
        save_every: Seconds between saved states of a training.
        log_every: Steps between the lines of ``metrics.jsonl``.
        failures: Images that could not be processed.
        log: Log of the run.
        progress_fn, metrics_fn, rewind_metrics_fn, interrupted_fn, claim_merge_fn: What the methods of these names
            call.
        made_by: Digest of what the run is made with; parts of another run are not taken for this one's.
        opened: What :meth:`open_once` has opened.
    """

    split: WeakSplit
    run: Path
    out: Path
    inputs: Mapping[str, Path] = field(default_factory=dict)
    device: str = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    deterministic: bool = True
    seed: int = 0
    workers: int = 0
    loaders: int = 0
    shard: tuple[int, int] = (0, 1)
    resume: bool = False
    save_every: float = 120.0
    log_every: int = 20
    failures: FailureLog = field(default_factory=FailureLog)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("weaksam"))
    progress_fn: ProgressFn = _silent
    metrics_fn: Callable[[Mapping[str, Any]], None] = lambda values: None
    rewind_metrics_fn: Callable[[str, int], None] = lambda phase, step: None
    interrupted_fn: Callable[[], None] = lambda: None
    claim_merge_fn: Callable[[], bool] = lambda: True
    made_by: str = ""
    opened: dict[Path, Any] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether a stage that learns fits here: on a train split, unless a checkpoint was given by hand."""
        return self.split.role == "train" and not self.has_input("checkpoint")

    def has_input(self, name: str) -> bool:
        """Whether an input was found or given."""
        return name in self.inputs

    def input(self, name: str) -> Path:
        """Path of an input.

        Raises:
            MissingInputError: the stage's role does not bring this input and no path was given.
        """
        if name not in self.inputs:
            raise MissingInputError(f"no {name} given", where=f"--{name}", hint=f"give --{name} PATH")
        return self.inputs[name]

    def open_once(self, path: Path, open_file: Callable[[Path], T]) -> T:
        """Open a file the first time, and return the same object afterwards: ``run`` gets what ``plan`` opened."""
        if path not in self.opened:
            self.opened[path] = open_file(path)
        return cast(T, self.opened[path])

    def progress(self, iterable: Iterable[T], work: Work) -> Iterator[T]:
        """Pass through ``iterable`` while showing progress."""
        return self.progress_fn(iterable, work)

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        self.metrics_fn(values)

    def rewind_metrics(self, phase: str, step: int) -> None:
        """Take back the lines of ``metrics.jsonl`` from a step of a phase on: these steps are done again."""
        self.rewind_metrics_fn(phase, step)

    def claim_merge(self) -> bool:
        """Return whether this process may merge what all shards have done; of several, one may."""
        return self.claim_merge_fn()

    def interrupted(self) -> None:
        """Raise if SIGTERM or Ctrl-C asked to stop; call where stopping loses nothing."""
        self.interrupted_fn()


@dataclass(frozen=True)
class Plan:
    """What a run would do, shown by ``--dry-run``."""

    images: int
    notes: tuple[str, ...] = ()


class Stage(Protocol[ConfigT_contra]):
    """What every stage offers, for settings of its own class.

    Attributes:
        spec: Its declaration.
    """

    @property
    def spec(self) -> StageSpec: ...

    def plan(self, config: ConfigT_contra, context: StageContext) -> Plan:
        """Check settings against the split and the inputs without doing the work."""
        ...

    def run(self, config: ConfigT_contra, context: StageContext) -> Counts:
        """Do the work; outputs are in ``context.out`` when this returns."""
        ...
