"""The error tree: each class owns its exit code, each message says what, where, why and what next.

Anything a user can cause derives from :class:`WeakSamError`; invariants of the code use ``assert``.
The exit codes are those of the table in ``docs/architecture.md``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar


class WeakSamError(Exception):
    """An error a user can act on.

    Args:
        what: What is wrong and why, one sentence.
        where: The file, flag or key concerned.
        hint: What to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | Path | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        message = self.what if self.where is None else f"{self.where}: {self.what}"
        return message if self.hint is None else f"{message}\n  hint: {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments are lost by the default pickling; worker processes need them back.
        return (_rebuild, (type(self), self.what, self.where, self.hint))


def _rebuild(cls: type[WeakSamError], what: str, where: str | None, hint: str | None) -> WeakSamError:
    return cls(what, where=where, hint=hint)


class UsageError(WeakSamError):
    """The command line cannot be understood."""

    exit_code = 2


class ConfigError(WeakSamError):
    """A setting is unknown, of the wrong type or out of range."""

    exit_code = 2


class InputError(WeakSamError):
    """An input is missing, stale, damaged or of a wrong schema."""

    exit_code = 3


class MissingInputError(InputError):
    """A file or folder that a stage reads does not exist."""


class StaleInputError(InputError):
    """A file no longer agrees with the manifest written beside it, or with what it was made from."""


class SchemaError(InputError):
    """A file exists but is not what its name says."""


class ImageError(InputError):
    """An image cannot be decoded."""


class GroundTruthForbiddenError(InputError):
    """Something outside evaluation asked for labels it must not see."""


class OutputExistsError(WeakSamError):
    """The output exists, or a resume was asked for under other settings."""

    exit_code = 4


class EnvironmentFault(WeakSamError):
    """The machine lacks something: a device, an extra, weights, disk space, permission."""

    exit_code = 5


class TooManyFailuresError(WeakSamError):
    """The stage finished, but more images failed than ``--max-failures`` allows."""

    exit_code = 6


class ExpectationError(WeakSamError):
    """``weaksam evaluate --expect`` was not met."""

    exit_code = 7


class TrainingDivergedError(WeakSamError):
    """A loss became NaN or infinite; the state before the step is saved."""

    exit_code = 8


class PreemptedError(WeakSamError):
    """SIGTERM arrived; the state is saved and the job may be requeued."""

    exit_code = 75


class InterruptedRunError(WeakSamError):
    """Ctrl-C arrived; the state is saved."""

    exit_code = 130


def did_you_mean(name: str, options: Iterable[str], *, limit: int = 12) -> str:
    """Say which of ``options`` resemble ``name``, or list what there is.

    Returns:
        ``did you mean 'a', 'b'?`` for close matches, else ``available: a, b, c`` (at most ``limit``
        names, then a count), else ``nothing is available``.
    """
    names = sorted(set(options))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + ", ".join(f"'{match}'" for match in close) + "?"
    if not names:
        return "nothing is available"
    more = "" if len(names) <= limit else f", and {len(names) - limit} more"
    return "available: " + ", ".join(names[:limit]) + more
