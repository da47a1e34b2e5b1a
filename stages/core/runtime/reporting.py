"""Logs and progress: to stderr, a bar on a terminal and a line every 30 s elsewhere."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from stages.core.artifacts.files import write_text
from stages.core.formatting import format_duration, format_number
from stages.core.runtime.processes import is_main
from stages.core.spec import Work

T = TypeVar("T")
LINE_EVERY_SECONDS = 30.0


def configure_logging(verbosity: int | None) -> logging.Logger:
    """Send the package's log to stderr: -1 warnings, 0 info, 1 debug; of several processes only the main one logs.

    None leaves the logger to the program that runs us.
    """
    logger = logging.getLogger("weaksam")
    if verbosity is None:
        return logger
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    logger.setLevel(level if is_main() else logging.ERROR)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    stream = logging.StreamHandler(sys.stderr)
    # A person at a terminal sees when; who reads the log of a job does not.
    stamp = "" if sys.stderr.isatty() else "%(asctime)s "
    stream.setFormatter(logging.Formatter(f"{stamp}%(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(stream)
    return logger


@contextlib.contextmanager
def events_log(logger: logging.Logger, path: Path) -> Iterator[None]:
    """Append time-stamped lines to ``events.log`` for the block, the last one being the error that ends it."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign] # a full disk takes no more lines
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        message = str(error).replace("\n", " ") or type(error).__name__
        handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, message, (), None))
        raise
    finally:
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def progress_reporter(
    logger: logging.Logger, *, enabled: bool
) -> Callable[[Iterable[Any], Work], Iterator[Any]]:
    """Return a function ``(iterable, work) -> iterator`` that shows how far an iteration is."""
    enabled = enabled and is_main()
    terminal = enabled and sys.stderr.isatty()

    def report(iterable: Iterable[T], work: Work) -> Iterator[T]:
        if terminal:
            yield from _bar(iterable, work)
        elif enabled:
            yield from _lines(iterable, work, logger)
        else:
            yield from iterable

    return report


class _Count:
    """How far an iteration is.

    Attributes:
        done: Units, those of an interrupted run among them.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.done = work.before
        self._start = time.monotonic()

    def over(self, iterable: Iterable[T]) -> Iterator[T]:
        """Count the items of an iteration, each when the next one is asked for."""
        for item in iterable:
            yield item
            self.done = min(self.done + self.work.each, self.work.total)

    def rate(self) -> str:
        """Return images per second, or nothing before the first."""
        new = self.done - self.work.before
        seconds = time.monotonic() - self._start
        return f"{format_number(new * self.work.images_each / seconds)} images/s" if new and seconds else ""

    def line(self) -> str:
        """Return done and total, images per second and the time left."""
        seconds, new = time.monotonic() - self._start, self.done - self.work.before
        facts = [f"{self.work.label}: {self.done:,}/{self.work.total:,} {self.work.unit}"]
        if new:
            left = seconds / new * (self.work.total - self.done)
            facts += [self.rate(), f"{format_duration(left)} left"]
        else:
            facts.append(f"{format_duration(seconds)} so far")
        return ", ".join(facts)


def _bar(iterable: Iterable[T], work: Work) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    count = _Count(work)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(work.label, total=work.total, completed=work.before, unit=work.unit, rate="")
        for item in count.over(iterable):
            bar.update(task, completed=count.done, rate=count.rate())
            yield item
        bar.update(task, completed=work.total, rate=count.rate())


def _lines(iterable: Iterable[T], work: Work, logger: logging.Logger) -> Iterator[T]:
    """Write a line every 30 s, also while a single item takes longer."""
    count, finished = _Count(work), threading.Event()

    def write_lines() -> None:
        while not finished.wait(LINE_EVERY_SECONDS):
            logger.info(count.line())

    writer = threading.Thread(target=write_lines, daemon=True)
    writer.start()
    try:
        yield from count.over(iterable)
    finally:
        finished.set()
        writer.join()


class MetricsFile:
    """``metrics.jsonl``: one line of JSON per call, floats rounded to 6 digits.

    Args:
        path: The file; what a killed run has left of a last line is removed.
        fresh: Begin the file again.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        if fresh:
            path.unlink(missing_ok=True)
        elif path.is_file() and not path.read_bytes().endswith(b"\n"):
            self._keep(path.read_text(encoding="utf-8", errors="replace").splitlines()[:-1])

    def append(self, values: Mapping[str, Any]) -> None:
        """Add a line."""
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(rounded) + "\n")

    def rewind(self, phase: str, step: int) -> None:
        """Remove the lines of a phase from a step on."""
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if not _at_or_after(line, phase, step)]
        if kept != lines:
            self._keep(kept)

    def _keep(self, lines: list[str]) -> None:
        write_text(self.path, "".join(f"{line}\n" for line in lines))


def _at_or_after(line: str, phase: str, step: int) -> bool:
    try:
        values = json.loads(line)
        return bool(values.get("phase") == phase and values.get("step", -1) >= step)
    except (ValueError, AttributeError, TypeError):
        return False
