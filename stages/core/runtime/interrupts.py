"""Stopping at a safe point: preemption, Ctrl-C and the end of the terminal set a flag that loops look at.

Before the work there is nothing to save, and the first signal stops at once. During it a second Ctrl-C stops at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from stages.core.errors import InterruptedRunError, PreemptedError, WeakSamError

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)


class InterruptFlag:
    """Remembers the signal that asked the run to stop.

    Attributes:
        signal: Its number, or None.
        deferred: Whether loops look at the flag; else the signal stops at once.
    """

    def __init__(self, *, deferred: bool) -> None:
        self.signal: int | None = None
        self.deferred = deferred

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; stop at once outside the work, and at the second Ctrl-C."""
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return  # already stopping: a launcher sends several
        self.signal = number
        if not self.deferred:
            raise self._error("before the work began")
        if number == signal.SIGINT:
            # Not by print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping at the next safe point; Ctrl-C again stops at once\n")

    def check(self) -> None:
        """Raise if a signal came.

        Raises:
            PreemptedError: after SIGTERM, SIGUSR1 or SIGHUP.
            InterruptedRunError: after Ctrl-C.
        """
        if self.signal is not None:
            raise self._error("the state is saved")

    def _error(self, state: str) -> WeakSamError:
        assert self.signal is not None
        hint = "the same command with --resume continues from here"
        if self.signal == signal.SIGINT:
            return InterruptedRunError(f"stopped by Ctrl-C; {state}", hint=hint)
        return PreemptedError(f"stopped by {signal.Signals(self.signal).name}; {state}", hint=hint)


def watch_signals() -> None:
    """Install the handlers for the rest of the program: until the work begins, a signal stops it at once."""
    flag = InterruptFlag(deferred=False)
    for number in STOP_SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) == signal.SIG_IGN:
            continue  # Ctrl-C is Python's own affair here; nohup ignores SIGHUP
        signal.signal(number, flag.handle)


def ignore_signals() -> None:
    """Let nothing disturb the end of the program: a launcher kills the slower processes as soon as one has ended."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


@contextlib.contextmanager
def catch_interrupts() -> Iterator[InterruptFlag]:
    """Install the handlers for the block; in a thread that may not, the flag is never set."""
    flag = InterruptFlag(deferred=True)
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN or number == signal.SIGINT:
            signal.signal(number, flag.handle)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            # Once asked to stop, the program's own handlers would only get in the way of its end.
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, InterruptFlag):
                outer.signal = outer.signal or flag.signal
            if handler is not None:
                signal.signal(number, handler)


def stop_here(interrupted: Callable[[], None], place: str) -> None:
    """Call a function that raises if the run is to stop, and add the place to what it raises."""
    try:
        interrupted()
    except (PreemptedError, InterruptedRunError) as stop:
        cause, semicolon, state = stop.what.partition(";")
        message = f"{cause} after {place}{semicolon}{state}"
        raise type(stop)(message, where=stop.where, hint=stop.hint) from None
