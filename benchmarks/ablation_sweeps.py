"""Sweeps of the thresholds of pseudo ground truth (no training) and of RoI drop (a training per point).

Settings may be chosen by them, so none of them uses the test split. The thresholds of `pgt` are swept on the
validation split where the teacher's detections of it exist, with the tags that its ground truth implies, else on the
train split; those of RoI drop are trained on the train split and measured on the validation split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation_rows import Metrics, Row, Spread, retrain_rows, spread
from benchmarks.ablation_runs import Bench
from benchmarks.plots import line_plot
from stages.core.artifacts.coco_json import read_results
from stages.core.config import build_config
from stages.core.evaluation.ground_truth.types import ImageGroundTruth
from stages.core.evaluation.pgt_quality import pgt_quality
from stages.core.evaluation.tasks import LabeledSplit
from stages.core.structures.detections import Detections
from stages.pgt.adaptive import Rule, select
from stages.pgt.config import PgtConfig
from stages.retrain.config import RetrainConfig

MODES = ("paper", "improved")
TAU_S = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TAU_O = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
TAU_RAW = (1.0, 2.0, 4.0)
"""Thresholds of raw losses. The published 4 drops one RoI in 300 of the drawn set: higher ones have nothing to drop."""
TAU_FRACTION = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Thresholds of the rules `normalized` and `percentile`."""


@dataclass(frozen=True)
class Sweep:
    """Metrics along one setting.

    Attributes:
        setting: Its name, `tau_s` for instance.
        split: Split it was measured on.
        held: What was held, as printed.
        curves: Name of a line -> metric -> points (value, spread over seeds).
    """

    setting: str
    split: str
    held: str
    curves: dict[str, dict[str, list[tuple[float, Spread]]]]

    @property
    def title(self) -> str:
        """One line over its table and plot."""
        return f"{self.setting} on {self.split}; {self.held}"

    def as_json(self) -> dict[str, Any]:
        """For the JSON file."""
        return asdict(self)

    def markdown(self) -> str:
        """A table with a line per value and a column per metric of each curve."""
        columns = [
            (f"{metric}, {name}", dict(points))
            for name, metrics in self.curves.items()
            for metric, points in metrics.items()
        ]
        values = sorted({value for _, points in columns for value in points})
        rows = [[self.setting, *(name for name, _ in columns)], ["---"] * (len(columns) + 1)]
        for value in values:
            rows.append([f"{value:g}", *(_cell(points.get(value)) for _, points in columns)])
        return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"

    def plot(self, path: Path) -> None:
        """Means as lines with a bar of one standard deviation up and down; no picture without points."""
        found = {
            f"{metric}, {name}": points
            for name, metrics in self.curves.items()
            for metric, points in metrics.items()
        }
        lines = {name: [(value, cell.mean) for value, cell in points] for name, points in found.items()}
        errors = {name: [cell.std or 0.0 for _, cell in points] for name, points in found.items()}
        if not any(lines.values()):
            return
        trained = any("AP50" in metrics for metrics in self.curves.values())
        bounds = _close(lines) if trained else (0.0, 1.0)
        line_plot(path, self.title, self.setting, "", lines, logarithmic=False, y_range=bounds, errors=errors)


def _cell(found: Spread | None) -> str:
    if found is None:
        return "–"
    return f"{found.mean:.3f}" if found.std is None else f"{found.mean:.3f} ± {found.std:.3f}"


def _close(lines: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """A range of y a little wider than the points, at least a tenth high."""
    ys = [y for points in lines.values() for _, y in points]
    middle, half = (min(ys) + max(ys)) / 2, max(0.05, (max(ys) - min(ys)) * 0.6)
    return max(0.0, middle - half), min(1.0, middle + half)


def true_tags(ground_truth: ImageGroundTruth) -> list[int]:
    """Classes an image would be tagged with: those of its objects that count."""
    return sorted(set(ground_truth.classes[~ground_truth.difficult & ~ground_truth.crowd].tolist()))


def tags_of(labeled: LabeledSplit) -> dict[str, list[int]]:
    """Tags of every labeled image; a test split has none of its own, so its ground truth gives them."""
    if labeled.split.has_tags:
        return {image_id: sorted(labeled.split.tags(image_id)) for image_id in labeled.images}
    return {image_id: true_tags(ground_truth) for image_id, ground_truth in labeled.images.items()}


def pseudo_boxes(
    found: Mapping[str, Detections], tags: Mapping[str, Sequence[int]], rule: Rule
) -> dict[str, Detections]:
    """What stage `pgt` would make of detections under a rule, in memory."""
    chosen = {}
    for image_id, own in tags.items():
        boxes = found[image_id]
        rows = select(boxes.boxes_xyxy, boxes.scores, boxes.classes, own, rule).rows
        chosen[image_id] = boxes[rows]
    return chosen


def pgt_metrics(found: Mapping[str, Detections], labeled: LabeledSplit, config: PgtConfig) -> Metrics:
    """Precision, recall and F1 at IoU .5 of the pseudo boxes of one rule."""
    classes = labeled.split.classes
    chosen = pseudo_boxes(found, tags_of(labeled), config.rule(classes))
    quality = pgt_quality(chosen, labeled.images, len(classes))
    return {"precision": quality.precision, "recall": quality.recall, "F1": quality.f1}


def pgt_sweeps(bench: Bench) -> list[Sweep]:
    """tau_s and tau_o of both adaptive rules, the other held at its base setting."""
    options = bench.options
    split = options.val if options.val and bench.knows(options.val) else options.train
    labeled = bench.labeled(split)
    teachers = {
        seed: read_results(bench.teacher(seed, split), labeled.split) for seed in bench.teacher_seeds()
    }
    base = PgtConfig.model_validate(bench.settings("pgt").model_dump())
    sweeps = []
    for setting, other, values in (("tau_s", "tau_o", TAU_S), ("tau_o", "tau_s", TAU_O)):
        curves: dict[str, dict[str, list[tuple[float, Spread]]]] = {}
        for mode in MODES:
            measured: dict[float, dict[int, Metrics]] = {}
            for value in sorted({*values, getattr(base, setting)}):
                config = build_config(
                    PgtConfig, [("base", base.model_dump()), ("sweep", {"mode": mode, setting: value})]
                )
                measured[value] = {s: pgt_metrics(found, labeled, config) for s, found in teachers.items()}
            curves[mode] = points(measured)
        sweeps.append(Sweep(setting, split, f"{other} = {getattr(base, other):g}", curves))
    return sweeps


def points(measured: Mapping[float, Mapping[int, Metrics]]) -> dict[str, list[tuple[float, Spread]]]:
    """Metric -> points in order of the value, without those that are undefined."""
    names = dict.fromkeys(name for seeds in measured.values() for found in seeds.values() for name in found)
    curves: dict[str, list[tuple[float, Spread]]] = {}
    for name in names:
        spreads = {
            value: spread({seed: found[name] for seed, found in seeds.items()})
            for value, seeds in sorted(measured.items())
        }
        curves[name] = [(value, found) for value, found in spreads.items() if found is not None]
    return curves


def rule_of(bench: Bench) -> str:
    """Rule of `pgt` in the base settings."""
    return PgtConfig.model_validate(bench.settings("pgt").model_dump()).mode


def drop_row(config: RetrainConfig) -> Row:
    """One point of the sweep of RoI drop, on the pseudo boxes of the base settings."""
    changes = {"roi_drop": config.roi_drop, "tau_cls": config.tau_cls, "tau_reg": config.tau_reg}
    name = (
        "off"
        if config.roi_drop == "off"
        else f"{config.roi_drop},cls={config.tau_cls:g},reg={config.tau_reg:g}"
    )
    return Row(f"sweeps/drop={name}", f"drop {name}", {"pgt": {}, "retrain": changes})


def drop_grid(base: RetrainConfig, rule: str) -> dict[str, list[tuple[float, Row]]]:
    """Setting -> (value, row) for tau_cls and tau_reg, the other held, and `none` without RoI drop.

    The points that the table trains anyway, without drop and with the base thresholds, are the table's rows.

    Args:
        base: Base settings.
        rule: Rule of `pgt` in the base settings.
    """
    values = TAU_FRACTION if base.roi_drop in ("normalized", "percentile") else TAU_RAW
    on = base if base.roi_drop != "off" else base.model_copy(update={"roi_drop": "paper"})
    table = {row.key: row for row in retrain_rows(on.architecture, on.architecture, on.roi_drop)}
    off = drop_row(on.model_copy(update={"roi_drop": "off"}))
    known = {
        drop_row(on).key: table.get(f"{on.architecture}/{rule}-drop"),
        off.key: table.get(f"{on.architecture}/{rule}"),
    }
    grid: dict[str, list[tuple[float, Row]]] = {"none": [(np.inf, known[off.key] or off)]}
    for setting in ("tau_cls", "tau_reg"):
        steps = sorted({*values, float(getattr(on, setting))})
        points = [(value, drop_row(on.model_copy(update={setting: value}))) for value in steps]
        grid[setting] = [(value, known.get(row.key) or row) for value, row in points]
    return grid


def drop_sweep(bench: Bench, measured: Mapping[str, Mapping[int, Metrics]]) -> Sweep:
    """AP50 on the validation split against both thresholds, from the metrics of the rows of `drop_grid`."""
    base = RetrainConfig.model_validate(bench.settings("retrain").model_dump())
    grid = drop_grid(base, rule_of(bench))
    curves = {
        setting: points({value: _ap50(measured.get(row.key, {})) for value, row in steps})
        for setting, steps in grid.items()
        if setting != "none"
    }
    reference = points({0.0: _ap50(measured.get(grid["none"][0][1].key, {}))}).get("AP50", [])
    ends = [value for setting in curves for value, _ in grid[setting]]
    curves["no drop"] = {"AP50": [(x, found) for _, found in reference for x in (min(ends), max(ends))]}
    held = f"the other held at tau_cls = {base.tau_cls:g}, tau_reg = {base.tau_reg:g}"
    assert bench.options.val is not None
    return Sweep("threshold of RoI drop", bench.options.val, held, curves)


def _ap50(seeds: Mapping[int, Metrics]) -> dict[int, Metrics]:
    return {seed: {"AP50": found["ap50"]} for seed, found in seeds.items()}
