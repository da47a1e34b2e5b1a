"""Line and bar plots as PNG files, by matplotlib: `pip install "weaksam[bench]"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.errors import EnvironmentFault

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

Points = Sequence[tuple[float, float]]
SIZE_INCHES = (9.0, 5.7)
GRID_COLOR = "#e0e0e0"
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


def new_figure() -> tuple[Figure, Axes]:
    """Return an empty figure and its axes; called before a long measurement it checks that plots can be drawn.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentFault("matplotlib is not installed", hint='pip install "weaksam[bench]"') from error
    figure = Figure(figsize=SIZE_INCHES, dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    return figure, axes


def line_plot(
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Points],
    *,
    logarithmic: bool = True,
    y_range: tuple[float, float] = (0.0, 1.0),
    errors: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Draw named lines.

    Args:
        path: PNG file; its folder is made.
        title: Above the plot.
        x_label: Below it.
        y_label: Beside it.
        lines: Name -> points; a name without points is left out.
        logarithmic: Whether the x axis is, which needs positive x.
        y_range: Lowest and highest y.
        errors: Name -> half the height of a bar at every point.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    figure, axes = new_figure()
    for name, points in lines.items():
        if points:
            xs, ys = zip(*points, strict=True)
            axes.errorbar(
                xs, ys, yerr=(errors or {}).get(name), label=name, marker="o", markersize=4, capsize=2
            )
    if logarithmic:
        # Plain numbers (1, 2, 5, 10, ...) instead of powers of ten.
        axes.set_xscale("log", subs=())
        axes.xaxis.set_major_locator(_ticks_1_2_5())
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=y_range)
    axes.grid(color=GRID_COLOR)
    figure.legend(loc="outside right upper", frameon=False)
    _save(figure, path)


def bar_plot(
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
    bars: Sequence[tuple[str, float | None, str]],
    *,
    reference: tuple[str, float],
) -> None:
    """Draw bars from 0 to at most 1 and a dashed line to compare them with.

    Args:
        path: PNG file; its folder is made.
        title: Above the plot.
        x_label: Below it.
        y_label: Beside it.
        bars: Label of the x axis, height in [0, 1] (None: no bar), text above the bar.
        reference: Name and height of the dashed line.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    figure, axes = new_figure()
    drawn = axes.bar([label for label, _, _ in bars], [height or 0.0 for _, height, _ in bars])
    axes.bar_label(drawn, [text for _, _, text in bars], padding=3, fontsize="small", bbox=LABEL_BOX)
    name, height = reference
    axes.axhline(height, color="black", linestyle="--", label=name)
    axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(0.0, 1.08))
    axes.grid(color=GRID_COLOR, axis="y")
    axes.legend(loc="upper left")
    _save(figure, path)


def _ticks_1_2_5() -> LogLocator:
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1.0, 2.0, 5.0))


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG without matplotlib's version in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
