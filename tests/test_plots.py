"""Plots of the benchmarks: what is on the axes, and files that are the same at every call."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import plots
from benchmarks.plots import bar_plot, line_plot, new_figure
from stages.core.errors import EnvironmentFault

LINES = {"one": [(1.0, 0.1), (10.0, 0.5)], "two": [(2.0, 0.3), (200.0, 0.9)], "none": []}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every figure made in the test."""
    made: list[Axes] = []

    def keep() -> tuple[Figure, Axes]:
        figure, axes = new_figure()
        made.append(axes)
        return figure, axes

    monkeypatch.setattr(plots, "new_figure", keep)
    return made


def test_line_plot__names_and_points_of_every_line(tmp_path: Path, drawn: list[Axes]) -> None:
    line_plot(tmp_path / "new" / "plot.png", "title", "x", "y", LINES, errors={"one": [0.1, 0.2]})
    (axes,) = drawn
    assert axes.get_legend_handles_labels()[1] == ["one", "two"]
    assert [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"] == [  # type: ignore[union-attr]
        [[1.0, 0.1], [10.0, 0.5]],
        [[2.0, 0.3], [200.0, 0.9]],
    ]
    assert (axes.get_xscale(), axes.get_ylim(), axes.get_title()) == ("log", (0.0, 1.0), "title")
    assert len(np.unique(np.asarray(Image.open(tmp_path / "new" / "plot.png")).reshape(-1, 4), axis=0)) > 3


def test_line_plot__linear_axis_takes_zero(tmp_path: Path, drawn: list[Axes]) -> None:
    line_plot(
        tmp_path / "a.png", "t", "x", "y", {"a": [(0.0, 0.4), (0.5, 0.5)]}, logarithmic=False, y_range=(0.4, 0.6)
    )  # fmt: skip
    assert (drawn[0].get_xscale(), drawn[0].get_ylim()) == ("linear", (0.4, 0.6))


def test_bar_plot__heights_texts_and_reference(tmp_path: Path, drawn: list[Axes]) -> None:
    bars = [("0.5", 0.25, "8"), ("1", None, "0")]
    bar_plot(tmp_path / "b.png", "t", "x", "y", bars, reference=("all", 0.2))
    (axes,) = drawn
    assert [bar.get_height() for bar in axes.patches] == [0.25, 0.0]  # type: ignore[attr-defined]
    assert [text.get_text() for text in axes.texts] == ["8", "0"]
    assert axes.lines[0].get_ydata() == [0.2, 0.2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.5", "1"]


def test_plots__same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        line_plot(tmp_path / name, "title", "x", "y", LINES)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_new_figure__without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EnvironmentFault, match=r"weaksam\[bench\]"):
        new_figure()
