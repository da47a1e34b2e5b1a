"""Tables of figures on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from stages.core.formatting import format_number

if TYPE_CHECKING:
    from stages.core.evaluation.tasks import Report


PIPED_WIDTH = 1000
"""Columns where nobody looks: a program that reads a table wants every row on one line."""


def stdout_console() -> Console:
    """Return a console as wide as the terminal, or as wide as any table where the output is piped."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)


def print_report_table(report: Report) -> None:
    """Figures of one artifact, and per class if there are any."""
    console = stdout_console()
    table = Table(title=f"{report.task} on {report.split}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in report.metrics.items():
        table.add_row(name, format_number(value))
    console.print(table)
    for note in report.notes:
        console.print(note, markup=False, highlight=False)
    if report.per_class:
        columns = list(next(iter(report.per_class.values())))
        classes = Table(title="per class")
        classes.add_column("class")
        for column in columns:
            classes.add_column(column, justify="right")
        for name, values in report.per_class.items():
            classes.add_row(name, *(format_number(values[c]) for c in columns))
        console.print(classes)


def print_run_table(figures: dict[str, Any]) -> None:
    """One table for a whole run: a row per stage and split."""
    table = Table(title=f"run {figures['run']}")
    table.add_column("stage")
    table.add_column("split")
    table.add_column("artifact")
    table.add_column("figures")
    table.add_column("seconds", justify="right")
    for row in figures["rows"]:
        shown = "  ".join(f"{name} {format_number(value)}" for name, value in row["metrics"].items())
        shown = shown or f"not measured: {row['problem']}"
        seconds = row.get("wall_seconds")
        table.add_row(
            row["stage"], row["split"], row["task"], shown, "" if seconds is None else f"{seconds:.0f}"
        )
    stdout_console().print(table)
