"""Time of a program's sections, for benchmarks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds by section.

    Args:
        device: Torch device string of the work.
        sections: Sections that are to be listed even if they never run.
    """

    def __init__(self, device: str, sections: Iterable[str] = ()) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(sections, 0.0)
        self._cuda = device.startswith("cuda")

    def now(self) -> float:
        """Wall seconds on a GPU once its work is done; elsewhere CPU seconds, which other programs disturb little."""
        if self._cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Add the time of the block to a section."""
        start = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start
