"""Line charts as plain numbers and SVG paths; the page's template turns them into markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.core.formatting import format_number

Series = Sequence[tuple[int, float]]
WIDTH, HEIGHT = 320, 130
MARGIN = 6
SMOOTHED = 60
"""Points per line: noisy curves are averaged in this many bins."""


@dataclass(frozen=True)
class Line:
    """One curve: its name, its slot in the page's palette, its SVG path and its last value."""

    name: str
    slot: int
    path: str
    last: str


@dataclass(frozen=True)
class Chart:
    """One chart in a WIDTH x HEIGHT view box."""

    title: str
    lines: tuple[Line, ...]
    low: str
    high: str
    steps: int


def line_chart(title: str, series: Mapping[str, Series], slots: int = 6) -> Chart | None:
    """Lay out curves that share one axis.

    Args:
        title: Heading of the chart.
        series: Name -> (step, value) points in the order of steps; empty ones are left out.
        slots: Colours the page has; further lines start over.

    Returns:
        The chart, or None when nothing can be drawn.
    """
    kept = {name: _binned(points) for name, points in series.items() if len(points) > 1}
    if not kept:
        return None
    values = [value for points in kept.values() for _, value in points]
    low, high = min(values), max(values)
    # Losses and shares start at zero; a curve far above it is shown between its own extremes.
    low = 0.0 if 0 <= low < 0.5 * high else low
    first = min(points[0][0] for points in kept.values())
    last = max(points[-1][0] for points in kept.values())
    lines = tuple(
        Line(
            name, slot % slots, _path(points, (first, last), (low, high)), format_number(series[name][-1][1])
        )
        for slot, (name, points) in enumerate(kept.items())
    )
    return Chart(
        title,
        lines,
        format_number(low),
        format_number(high),
        int(max(p[-1][0] for p in series.values() if p)),
    )


def _binned(points: Series) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / SMOOTHED)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]


def _path(
    points: Sequence[tuple[float, float]], steps: tuple[float, float], values: tuple[float, float]
) -> str:
    across = (WIDTH - 2 * MARGIN) / max(steps[1] - steps[0], 1e-12)
    down = (HEIGHT - 2 * MARGIN) / max(values[1] - values[0], 1e-12)
    places = [
        f"{MARGIN + (s - steps[0]) * across:.1f} {HEIGHT - MARGIN - (v - values[0]) * down:.1f}"
        for s, v in points
    ]
    return "M" + "L".join(places)
