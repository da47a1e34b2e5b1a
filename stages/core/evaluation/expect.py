"""Expectations on figures, ``ap50>=0.6``: parse them, check them, say what was found instead."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from stages.core.errors import ExpectationError, UsageError, did_you_mean

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_PATTERN = re.compile(r"\s*([A-Za-z][\w./-]*)\s*(>=|<=|==|>|<)\s*([-+.\deE]+)\s*")


@dataclass(frozen=True)
class Expectation:
    """``metric relation bound``; metric names compare without regard to case."""

    metric: str
    relation: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.relation}{self.bound:g}"


def parse_expectation(text: str) -> Expectation:
    """Parse ``NAME RELATION NUMBER`` with a relation among >= <= == > <.

    Raises:
        UsageError: the text is not of this form.
    """
    match = _PATTERN.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        bound = float(match.group(3))
    except ValueError as error:
        raise UsageError(
            f"cannot read the expectation {text!r}",
            where="--expect",
            hint="write it as --expect 'ap50>=0.6'",
        ) from error
    return Expectation(match.group(1), match.group(2), bound)


def check_expectations(texts: Iterable[str], metrics: Mapping[str, float | None]) -> None:
    """Check every expectation; a figure that is nan or None meets none.

    Raises:
        UsageError: an expectation cannot be read, or names no figure of ``metrics``.
        ExpectationError: one or more are not met; the message lists all of these.
    """
    figures = {name.lower(): value for name, value in metrics.items()}
    unmet = []
    for expectation in [parse_expectation(text) for text in texts]:
        name = expectation.metric.lower()
        if name not in figures:
            raise UsageError(
                f"no figure is called '{expectation.metric}'",
                where="--expect",
                hint=did_you_mean(name, figures),
            )
        value = figures[name]
        if (
            value is None
            or math.isnan(value)
            or not OPERATORS[expectation.relation](value, expectation.bound)
        ):
            shown = "undefined" if value is None or math.isnan(value) else f"{value:.4f}"
            unmet.append(f"{expectation} (found {shown})")
    if unmet:
        raise ExpectationError(f"expected {', '.join(unmet)}", where="--expect")
