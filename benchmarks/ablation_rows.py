"""The rows of the ablation, and what is made of their metrics: mean and spread over seeds, steps, one table.

Pure: nothing here trains or reads a file. A row is a set of changes to the settings of a finished run; its metrics are
those of one run folder per seed (`benchmarks/ablation_runs.py`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

Metrics = dict[str, float]
"""Column -> value of one run."""
Measured = dict[str, dict[int, Metrics]]
"""Key of a row -> seed -> metrics."""

COLUMNS = {
    "ap50": "AP50, test",
    "coco_ap": "COCO AP, test",
    "corloc": "CorLoc, train",
    "precision50": "PGT precision",
    "recall50": "PGT recall",
    "boxes_per_image": "PGT boxes",
    "step": "AP50 step",
    "of_bound": "of the bound",
}
"""Metric -> its column; the last two are made of `ap50`, seed by seed."""


@dataclass(frozen=True)
class Row:
    """One line of the ablation.

    Attributes:
        key: Its folder under the output, e.g. `faster-rcnn/improved-drop`.
        label: As printed.
        changes: Stage -> what differs from the base settings; the stages named are those it runs.
        over: Key of the row whose AP50 it should raise.
        bound: Key of the supervised row of the same detector.
        recipe: Recipe whose `retrain` section comes between the base settings and the changes.
        ground_truth: Trained on the true boxes in the place of pseudo boxes.
    """

    key: str
    label: str
    changes: Mapping[str, Mapping[str, Any]]
    over: str | None = None
    bound: str | None = None
    recipe: str | None = None
    ground_truth: bool = False


WSOD_ROWS = (
    Row("wsod/wsddn", "WSDDN", {"wsod": {"method": "wsddn", "dropblock": False}}),
    Row("wsod/oicr", "OICR", {"wsod": {"method": "oicr", "dropblock": False}}, "wsod/wsddn"),
    Row("wsod/mist", "MIST", {"wsod": {"method": "mist", "dropblock": False}}, "wsod/oicr"),
    Row("wsod/mist-cdb", "MIST + CDB", {"wsod": {"method": "mist", "dropblock": True}}, "wsod/mist"),
)
"""CDB: Concrete DropBlock."""

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "top1": ("top-1 PGT", {"mode": "topk", "top_k": 1}),
    "paper": ("adaptive PGT (paper)", {"mode": "paper"}),
    "improved": ("adaptive PGT (improved)", {"mode": "improved"}),
}
"""Rule -> its name as printed, what it changes."""

PGT_ROWS = tuple(Row(f"pgt/{rule}", name, {"pgt": changes}) for rule, (name, changes) in RULES.items())


def retrain_rows(
    detector: str, name: str, drop: str, recipe: str | None = None, rules: Collection[str] = tuple(RULES)
) -> tuple[Row, ...]:
    """Top-1, adaptive rules without and with RoI drop, and the supervised bound of one detector.

    Args:
        detector: Folder of its rows.
        name: As printed.
        drop: Rule of the rows with RoI drop.
        recipe: Recipe with the detector's settings, if they are not the base settings.
        rules: Those of `RULES` to retrain on.
    """
    bound = f"{detector}/supervised"
    rows = []
    for rule, (label, changes) in RULES.items():
        if rule not in rules:
            continue
        plain = {"pgt": changes, "retrain": {"roi_drop": "off"}}
        over = None if rule == "top1" else f"{detector}/top1"
        rows.append(Row(f"{detector}/{rule}", f"{name}, {label}", plain, over, bound, recipe))
        if rule != "top1":
            dropping = {"pgt": changes, "retrain": {"roi_drop": drop}}
            key, title = f"{detector}/{rule}-drop", f"{name}, {label} + RoI drop"
            rows.append(Row(key, title, dropping, f"{detector}/{rule}", bound, recipe))
    rows.append(
        Row(bound, f"{name}, true boxes", {"retrain": {"roi_drop": "off"}}, recipe=recipe, ground_truth=True)
    )
    return tuple(rows)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a metric over seeds.

    Attributes:
        mean: Mean.
        std: Sample standard deviation (n - 1); None for a single value.
        values: Seed -> value.
    """

    mean: float
    std: float | None
    values: dict[int, float] = field(default_factory=dict)


def spread(values: Mapping[int, float]) -> Spread | None:
    """Mean and spread of the values (by seed) that are defined; None if none is."""
    defined = {seed: float(value) for seed, value in values.items() if math.isfinite(value)}
    if not defined:
        return None
    numbers = list(defined.values())
    return Spread(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, defined)


@dataclass(frozen=True)
class Line:
    """A row with its metrics: column -> spread, for the columns it has."""

    row: Row
    cells: dict[str, Spread]

    def as_json(self) -> dict[str, Any]:
        """For the JSON file."""
        metrics = {name: asdict(cell) for name, cell in self.cells.items()}
        return {"key": self.row.key, "label": self.row.label, "over": self.row.over, "metrics": metrics}


def summarise(rows: Iterable[Row], measured: Measured) -> list[Line]:
    """One line per measured row; steps and fractions of the bound are paired by seed."""
    lines = []
    for row in rows:
        own = measured.get(row.key)
        if not own:
            continue
        columns: dict[str, dict[int, float]] = {
            name: {seed: found[name] for seed, found in own.items() if name in found} for name in COLUMNS
        }
        below, bound = (measured.get(key or "", {}) for key in (row.over, row.bound))
        for seed, found in own.items():
            if seed in below:
                columns["step"][seed] = found["ap50"] - below[seed]["ap50"]
            if seed in bound and bound[seed]["ap50"] > 0:
                columns["of_bound"][seed] = found["ap50"] / bound[seed]["ap50"]
        cells = {name: spread(values) for name, values in columns.items()}
        lines.append(Line(row, {name: cell for name, cell in cells.items() if cell is not None}))
    return lines


def markdown(lines: Sequence[Line], seeds: Sequence[int]) -> str:
    """One table of all lines, without the columns that no line has.

    A row with fewer seeds than asked for says with how many.
    """
    used = [name for name in COLUMNS if any(name in line.cells for line in lines)]
    rows = [["row", *(COLUMNS[name] for name in used)]]
    for line in lines:
        done = max((len(cell.values) for cell in line.cells.values()), default=0)
        # Pseudo boxes of one teacher do not depend on the seed.
        short = done < len(seeds) and not line.row.key.startswith("pgt/")
        label = f"{line.row.label} ({done} of {len(seeds)} seeds)" if short else line.row.label
        rows.append([label, *(shown(name, line.cells.get(name)) for name in used)])
    rows.insert(1, ["---"] * (len(used) + 1))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def shown(name: str, cell: Spread | None) -> str:
    """A cell: `0.612 ± 0.013`; steps with their sign, fractions in percent."""
    if cell is None:
        return "–"
    scale, form = {"step": (1, "+.3f"), "of_bound": (100, ".1f"), "boxes_per_image": (1, ".2f")}.get(
        name, (1, ".3f")
    )
    text = format(scale * cell.mean, form)
    if cell.std is not None:
        text += " ± " + format(scale * cell.std, form.lstrip("+"))
    return f"{text} %" if name == "of_bound" else text
