"""Training batches loaded ahead, in processes of their own; the same batches in the same order as without them.

What a batch holds depends on (seed, epoch, image) alone, so it does not matter where or when it is loaded. Images that
cannot be read, and errors, come back with the batch they belong to. The processes are PyTorch's: forked, so that
nothing has to be pickled on the way there, and gone when their parent is.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

# Here rather than in the processes: an import after a fork may meet a lock that nobody holds any more.
import cv2
import numpy.random  # noqa: F401 - which PyTorch seeds in every process
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stages.core.errors import EnvironmentFault, WeakSamError
from stages.core.spec import FailureLog

BatchT = TypeVar("BatchT")
Wanted = tuple[list[str], int]
"""Image ids and the epoch."""

AHEAD = 2
"""Batches that each process loads in advance."""
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED_BYTES, LEAST_FILES = 2**30, 1024
"""With less shared memory, or fewer open files allowed, batches come through pipes: slower, but they always fit."""


@contextlib.contextmanager
def batches(
    load: Callable[[list[str], int], BatchT], wanted: Iterable[Wanted], workers: int, failures: FailureLog
) -> Iterator[Iterator[BatchT]]:
    """Give an iterator of the batches that are wanted, in order, for a block.

    Args:
        load: ``(ids, epoch) -> batch``; records images that it cannot read in `failures`.
        wanted: What to load.
        workers: Processes that load ahead; 0 loads each batch here, when it is asked for, and so does a system that
            cannot fork.
        failures: Gets the failures of all processes.

    Raises:
        WeakSamError: whatever `load` raises, with its batch.
        EnvironmentFault: a process was killed.
    """
    if workers == 0 or "fork" not in multiprocessing.get_all_start_methods():
        yield (load(ids, epoch) for ids, epoch in wanted)
        return
    closing = mmap.mmap(-1, 1)  # shared with the processes
    pipes = not shared_memory_suffices()
    loader = DataLoader(
        _Batches(load, failures, pipes),
        batch_size=None,
        sampler=_Order(wanted),
        num_workers=workers,
        prefetch_factor=AHEAD,
        multiprocessing_context="fork",
        collate_fn=_unchanged,
        worker_init_fn=_Start(closing, os.getpid()),
    )
    iterator = iter(loader)
    try:
        yield _received(iterator, failures, pipes)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise EnvironmentFault(
            f"a process that loads images ended ({error})",
            hint="use fewer --workers, or free memory; --resume continues from the last saved state",
        ) from error
    finally:
        closing[0] = 1
        del iterator, loader  # ends the processes


def shared_memory_suffices() -> bool:
    """Return whether batches can be handed over in shared memory: containers often have 64 MB of it."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return False
    # Every tensor that is handed over takes an open file.
    return free >= LEAST_SHARED_BYTES and resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= LEAST_FILES


def moved(values: Tensor, device: str) -> Tensor:
    """Copy a tensor to a device; a copy to a GPU does not wait for what that is doing."""
    if device.startswith("cuda"):
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class _Loaded(NamedTuple):
    """A batch, or the error in its place, and the images that could not be read on the way, with reasons."""

    batch: Any
    failures: dict[str, str]
    error: WeakSamError | None


class _Batches(Dataset[Any]):
    """Batches by what is wanted; used in the processes."""

    def __init__(self, load: Callable[[list[str], int], Any], failures: FailureLog, as_bytes: bool) -> None:
        self._load, self._failures, self._as_bytes = load, failures, as_bytes

    def __getitem__(self, wanted: Wanted) -> Any:
        known = set(self._failures.entries)
        try:
            batch, error = self._load(*wanted), None
        except WeakSamError as raised:
            batch, error = None, raised
        new = {name: reason for name, reason in self._failures.entries.items() if name not in known}
        found = _Loaded(batch, new, error)
        return pickle.dumps(found, pickle.HIGHEST_PROTOCOL) if self._as_bytes else found


class _Order(Generic[BatchT]):
    """What is wanted as the sampler of a DataLoader."""

    def __init__(self, wanted: Iterable[Wanted]) -> None:
        self._wanted = wanted

    def __iter__(self) -> Iterator[Wanted]:
        return iter(self._wanted)


class _Start:
    """What a process does first.

    Signals reach the whole process group: the parent decides when to stop, at the end of a step, so its loaders must
    not be gone before. SIGTERM ends them once it closes them, or where it no longer lives.
    """

    def __init__(self, closing: mmap.mmap, parent: int) -> None:
        self._closing, self._parent = closing, parent

    def __call__(self, worker: int) -> None:
        cv2.setNumThreads(0)  # its pool of threads does not survive a fork
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: Any) -> None:
        if self._closing[0] or os.getppid() != self._parent:
            os._exit(0)


def _unchanged(item: Any) -> Any:
    return item


def _received(iterator: Iterator[Any], failures: FailureLog, as_bytes: bool) -> Iterator[Any]:
    for item in iterator:
        found: _Loaded = pickle.loads(item) if as_bytes else item  # noqa: S301 - from our own process
        for image_id, reason in found.failures.items():
            failures.record(image_id, reason)
        if found.error is not None:
            raise found.error
        yield found.batch
