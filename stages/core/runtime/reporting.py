"""Logs and progress: to stderr, a bar on a terminal and a line every 30 s elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from stages.core.runtime.processes import is_main

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
    stream.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(stream)
    return logger


def events_handler(path: Path) -> logging.Handler:
    """Return a handler that appends time-stamped lines to ``events.log``."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


def progress_reporter(
    logger: logging.Logger, *, enabled: bool
) -> Callable[[Iterable[Any], int, str], Iterator[Any]]:
    """Return a function ``(iterable, total, label) -> iterator`` that shows how far an iteration is."""
    enabled = enabled and is_main()
    terminal = enabled and sys.stderr.isatty()

    def report(iterable: Iterable[T], total: int, label: str) -> Iterator[T]:
        if terminal:
            yield from _bar(iterable, total, label)
        elif enabled:
            yield from _lines(iterable, total, label, logger)
        else:
            yield from iterable

    return report


def _bar(iterable: Iterable[T], total: int, label: str) -> Iterator[T]:
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
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield from bar.track(iterable, total=total, description=label)


def _lines(iterable: Iterable[T], total: int, label: str, logger: logging.Logger) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if done and now - last >= LINE_EVERY_SECONDS:
            last = now
            left = (now - start) / done * (total - done)
            logger.info("%s: %d/%d, %.0f s left", label, done, total, left)
        yield item


def metrics_writer(path: Path) -> Callable[[Mapping[str, Any]], None]:
    """Return a function that appends one JSON line per call; floats are rounded to 6 digits."""
    import json

    def write(values: Mapping[str, Any]) -> None:
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(rounded) + "\n")

    return write
