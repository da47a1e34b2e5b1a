"""Stopping at a safe point: SIGTERM (preemption) and Ctrl-C set a flag that loops look at.

A second Ctrl-C stops at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from stages.core.errors import InterruptedRunError, PreemptedError


class InterruptFlag:
    """Remembers the signal that asked the run to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; stop at once at the second Ctrl-C."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def check(self) -> None:
        """Raise if a signal came.

        Raises:
            PreemptedError: after SIGTERM or SIGUSR1.
            InterruptedRunError: after Ctrl-C.
        """
        if self.signal is None:
            return
        hint = "the same command with --resume continues from here"
        if self.signal == signal.SIGINT:
            raise InterruptedRunError("stopped by Ctrl-C; the state is saved", hint=hint)
        raise PreemptedError(f"stopped by {signal.Signals(self.signal).name}; the state is saved", hint=hint)


@contextlib.contextmanager
def catch_interrupts() -> Iterator[InterruptFlag]:
    """Install the handlers for the block; in a thread that may not, the flag is never set."""
    flag = InterruptFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    watched = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    before = {number: signal.signal(number, flag.handle) for number in watched}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
