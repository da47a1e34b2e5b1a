"""Map-style work: a function per image, cut into parts by image id, resumable and shardable.

Several processes of one launch (torchrun, srun) take the parts in turn, like shards that wait for one another.
A part is written to a temporary name and renamed; the final table is a deterministic merge, the same
bytes however many workers, shards or restarts made it. Failures are kept beside the part they belong to.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from stages.core.artifacts.files import disk_faults, read_json, write_json
from stages.core.artifacts.joined_table import JoinedTable
from stages.core.artifacts.table import ImageRows, Table, gather, read_table, write_table
from stages.core.artifacts.table_file import TableSchema
from stages.core.errors import EnvironmentFault, InputError, SchemaError, UsageError, WeakSamError
from stages.core.hdf5_files import read_attributes
from stages.core.runtime.interrupts import stop_here
from stages.core.runtime.processes import is_main, rank, wait_for_all, world
from stages.core.runtime.seeding import seed_everything
from stages.core.spec import StageContext, Work

PART_SIZE, MOST_PARTS = 16, 512
"""Images per part, which is what a kill loses at most, per worker; parts grow rather than be more than so many."""

MADE_BY, FAILURES = "made_by", "failures"
"""What is kept with a part: the digest of what its run is made with, and the images that failed."""

ImageFunction = Callable[[str], ImageRows]
Factory = Callable[[], ImageFunction]


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``I/N`` (0-based).

    Raises:
        UsageError: not of that form or out of range.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(
            f"'{text}' is not a shard", where="--shard", hint="use I/N with 0 <= I < N, e.g. 0/4"
        )
    return int(index), int(count)


def part_lists(ids: Sequence[str]) -> list[tuple[str, ...]]:
    """Cut sorted ids into parts; depends on the ids alone."""
    size = max(PART_SIZE, -(-len(ids) // MOST_PARTS))
    return [tuple(ids[i : i + size]) for i in range(0, len(ids), size)]


def map_images(
    context: StageContext,
    schema: TableSchema,
    factory: Factory,
    label: str,
    attrs: Mapping[str, Any] | None = None,
    *,
    everywhere: bool = False,
) -> Table | None:
    """Apply a function to every image of the split and return its rows as one table, which is read part by part.

    Args:
        context: Gives ids, workers, shard, resume and the output folder (``<out>/parts``).
        schema: Table the function's rows belong to.
        factory: Picklable; called once per worker process, builds the model and returns the function. A
            :class:`WeakSamError` that the function raises is recorded as the image's failure; the image then has no
            entry in the table.
        label: For the progress display.
        attrs: Stored with the table.
        everywhere: Of several processes, return the table in all instead of the main one, which alone writes.

    Returns:
        The table, or None while other shards have not finished their parts, and in processes that do not write.
    """
    folder = context.out / "parts"
    parts = part_lists(context.split.ids)
    index, count = context.shard if world() == 1 else (rank(), world())
    wait_for_all()  # for what the main process has written, such as a checkpoint
    todo = [i for i in range(len(parts)) if i % count == index and not _finished(folder, i, context.made_by)]
    own, left = (sum(len(parts[i]) for i in some) for some in (range(index, len(parts), count), todo))
    work = Work(label, own, each=PART_SIZE, before=own - left)
    for done in context.progress(_do_parts(context, schema, factory, folder, parts, todo), work):
        stop_here(context.interrupted, f"part {done} of {len(todo)}")
    wait_for_all()
    if not (is_main() or everywhere):
        return None
    # Looked at again with the right to merge: another shard may have merged and removed them in between.
    if not (_all_finished(context, folder, parts) and context.claim_merge()):
        return None
    if context.shard[1] > 1 and not _all_finished(context, folder, parts):
        return None
    return _merge_parts(context, schema, folder, parts, dict(attrs or {}))


def _part_path(folder: Path, index: int) -> Path:
    return folder / f"part-{index:05d}.h5"


def _all_finished(context: StageContext, folder: Path, parts: Sequence[tuple[str, ...]]) -> bool:
    return all(_finished(folder, i, context.made_by) for i in range(len(parts)))


def _finished(folder: Path, index: int, made_by: str) -> bool:
    """Return whether a part is there, whole, and of a run that is made with the same."""
    path = _part_path(folder, index)
    try:
        failures = read_json(path.with_suffix(".json"))
        return path.is_file() and failures.get(MADE_BY) == made_by == read_attributes(path).get(MADE_BY)
    except (InputError, AttributeError):
        return False  # missing, or cut by a disk that failed: done again


def _merge_parts(
    context: StageContext,
    schema: TableSchema,
    folder: Path,
    parts: Sequence[tuple[str, ...]],
    attrs: dict[str, Any],
) -> Table:
    paths = [_part_path(folder, i) for i in range(len(parts))]
    failed = set()
    for path in paths:
        _check_part(path, schema)
        for image_id, reason in read_json(path.with_suffix(".json"))[FAILURES].items():
            context.failures.record(image_id, reason)
            failed.add(image_id)
    table = JoinedTable(paths, schema, [i for i in context.split.ids if i not in failed])
    table.attrs = attrs
    return table


def _check_part(path: Path, schema: TableSchema) -> None:
    """Open a finished part; one that is damaged is removed, so that the next attempt does it again."""
    try:
        read_table(path, schema).close()
    except SchemaError as error:
        path.unlink(missing_ok=True)
        raise EnvironmentFault(
            f"damaged on the disk ({error.what}); removed",
            where=path,
            hint="the same command with --resume does this part again",
        ) from error


def _do_parts(
    context: StageContext,
    schema: TableSchema,
    factory: Factory,
    folder: Path,
    parts: Sequence[tuple[str, ...]],
    todo: Sequence[int],
) -> Iterator[int]:
    """Do the parts of a list, here or in worker processes; yields how many are done, after each."""
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    workers = min(context.workers, len(todo))
    if workers > 1:
        yield from _do_in_workers(workers, context, schema, factory, {i: parts[i] for i in todo})
    elif todo:
        function = _prepared(factory, context.seed, context.device, context.deterministic)
        for done, i in enumerate(todo, 1):
            _do_part(_part_path(folder, i), schema, function, parts[i], context.made_by)
            yield done


def _do_in_workers(
    workers: int,
    context: StageContext,
    schema: TableSchema,
    factory: Factory,
    parts: Mapping[int, tuple[str, ...]],
) -> Iterator[int]:
    """Give each worker a part at a time, so that an interruption loses no more than the parts in progress."""
    folder = context.out / "parts"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, spawn, _start_worker, (factory, context.seed, context.device, context.deterministic)
    ) as pool:
        queue = list(parts)[::-1]
        running: set[Future[None]] = set()
        finished = 0
        try:
            while queue or running:
                while queue and len(running) < workers:
                    i = queue.pop()
                    part = (_part_path(folder, i), schema, parts[i], context.made_by)
                    running.add(pool.submit(_worker_part, *part))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    finished += 1
                    yield finished
        except KeyboardInterrupt:  # the second Ctrl-C waits for nobody
            for worker in multiprocessing.active_children():
                worker.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_function: ImageFunction | None = None


def _start_worker(factory: Factory, seed: int, device: str, deterministic: bool) -> None:
    import signal

    global _function
    # The parent decides when to stop; Ctrl-C and what a cluster sends reach the whole process group.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = _prepared(factory, seed, device, deterministic)


def _end_with_parent() -> None:
    """Wait for the parent to end, even by SIGKILL, and end this worker with it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _worker_part(path: Path, schema: TableSchema, ids: Sequence[str], made_by: str) -> None:
    assert _function is not None
    _do_part(path, schema, _function, ids, made_by)


def _prepared(factory: Factory, seed: int, device: str, deterministic: bool) -> ImageFunction:
    import cv2
    import torch

    if device == "cpu":
        # One thread each: results then do not depend on how many cores or workers there are.
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    seed_everything(seed, deterministic)
    return factory()


def _do_part(
    path: Path, schema: TableSchema, function: ImageFunction, ids: Sequence[str], made_by: str
) -> None:
    rows: dict[str, ImageRows] = {}
    failures: dict[str, str] = {}
    for image_id in ids:
        try:
            rows[image_id] = function(image_id)
        except EnvironmentFault:
            raise  # the machine's fault, and no reason to count the image as failed
        except WeakSamError as error:
            failures[image_id] = str(error).replace("\n", " ")
    write_json(path.with_suffix(".json"), {MADE_BY: made_by, FAILURES: failures})
    table = gather(schema, rows)
    table.attrs = {MADE_BY: made_by}
    write_table(path, schema, table)
