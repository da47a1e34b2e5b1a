"""The ablation's rows, its means and spreads, its table, its sweeps and its plots, without any training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ablation import rows_of, run_rows
from benchmarks.ablation_rows import (
    PGT_ROWS,
    WSOD_ROWS,
    Metrics,
    Row,
    Spread,
    markdown,
    retrain_rows,
    shown,
    spread,
    summarise,
)
from benchmarks.ablation_runs import Bench, Options
from benchmarks.ablation_sweeps import (
    TAU_FRACTION,
    TAU_RAW,
    Sweep,
    drop_grid,
    pgt_metrics,
    points,
    pseudo_boxes,
    true_tags,
)
from stages.core.datasets.catalog import open_split
from stages.core.errors import InputError, PreemptedError, UsageError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.tasks import LabeledSplit
from stages.core.structures.detections import Detections
from stages.pgt.adaptive import Rule
from stages.pgt.config import PgtConfig
from stages.retrain.config import RetrainConfig
from stages.wsod.config import WsodConfig
from tests.datasets_builders import make_voc


def bench(tmp_path: Path, *assignments: str, recipe: str | None = None) -> Bench:
    return Bench(
        Options(
            run=tmp_path / "run", out=tmp_path / "out", data=tmp_path / "data", train="tiny_train",
            test="tiny_test", recipe=recipe, assignments=assignments,
        )
    )  # fmt: skip


def test_rows__are_valid_settings_and_name_rows_that_exist(tmp_path: Path) -> None:
    rows = rows_of(bench(tmp_path), ("wsod", "pgt", "retrain"), ["*"], "detr")
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys) == 4 + 3 + 6 + 4
    assert [key for key in keys if key.startswith("rt-detr/")] == [
        "rt-detr/top1", "rt-detr/improved", "rt-detr/improved-drop", "rt-detr/supervised",
    ]  # fmt: skip
    for row in rows:
        assert row.over is None or row.over in keys[: keys.index(row.key)]
        assert row.bound is None or row.bound in keys
        for stage, changes in row.changes.items():
            bench(tmp_path).settings(stage, changes, row.recipe)


def test_rows__each_step_changes_what_its_name_says(tmp_path: Path) -> None:
    at = bench(tmp_path, "wsod.dropblock=true")
    found = [
        WsodConfig.model_validate(at.settings("wsod", row.changes["wsod"]).model_dump()) for row in WSOD_ROWS
    ]
    assert [(one.method, one.dropblock) for one in found] == [
        ("wsddn", False), ("oicr", False), ("mist", False), ("mist", True),
    ]  # fmt: skip
    rows = {row.key: row for row in retrain_rows("d", "D", "percentile")}
    dropping = {key for key, row in rows.items() if row.changes["retrain"]["roi_drop"] == "percentile"}
    assert dropping == {"d/paper-drop", "d/improved-drop"}
    assert rows["d/improved-drop"].over == "d/improved"
    assert [key for key, row in rows.items() if row.ground_truth] == ["d/supervised"]


def test_settings__row_beats_set_beats_recipe_of_the_row_beats_base(tmp_path: Path) -> None:
    recipe = tmp_path / "base.yaml"
    recipe.write_text("retrain: {epochs: 3, lr: 0.5, tau_cls: 7.0}\n", encoding="utf-8")
    at = bench(tmp_path, "retrain.epochs=4", recipe=str(recipe))
    found = RetrainConfig.model_validate(at.settings("retrain", {"roi_drop": "off"}, "detr").model_dump())
    assert (found.epochs, found.lr, found.roi_drop, found.architecture) == (4, 0.0004, "off", "rt-detr")
    plain = RetrainConfig.model_validate(at.settings("retrain").model_dump())
    assert (plain.epochs, plain.lr, plain.tau_cls) == (4, 0.5, 7.0)


def test_rows_of__patterns_choose_and_a_wrong_one_lists_what_there_is(tmp_path: Path) -> None:
    rows = rows_of(bench(tmp_path), ("wsod", "retrain"), ["wsod/mist*", "*/supervised"], None)
    assert [row.key for row in rows] == ["wsod/mist", "wsod/mist-cdb", "faster-rcnn/supervised"]
    with pytest.raises(UsageError, match="rows: wsod/wsddn"):
        rows_of(bench(tmp_path), ("wsod",), ["mist"], None)


def test_rows_of__base_settings_of_a_detr_are_not_trained_twice(tmp_path: Path) -> None:
    rows = rows_of(bench(tmp_path, recipe="detr"), ("retrain",), ["*"], "detr")
    assert len(rows) == 6
    assert rows[0].key == "rt-detr/top1"


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        ({0: 0.1, 1: 0.3}, 0.2, math.sqrt(0.02)),  # n - 1 in the denominator
        ({0: 0.4}, 0.4, None),  # one seed has no spread
        ({0: 0.4, 1: math.nan, 2: 0.2}, 0.3, math.sqrt(0.02)),  # undefined ones do not count
    ],
)
def test_spread__mean_and_sample_deviation(values: dict[int, float], mean: float, std: float | None) -> None:
    found = spread(values)
    assert found is not None
    assert found.mean == pytest.approx(mean)
    assert found.std == (None if std is None else pytest.approx(std))


def test_spread__nothing_defined() -> None:
    assert spread({}) is None
    assert spread({0: math.nan}) is None


A = Row("a", "A", {"wsod": {}}, bound="c")
B = Row("b", "B", {"wsod": {}}, over="a", bound="c")
C = Row("c", "C", {"retrain": {}})


def test_summarise__steps_and_fractions_are_paired_by_seed() -> None:
    measured: dict[str, dict[int, Metrics]] = {
        "a": {0: {"ap50": 0.2}, 1: {"ap50": 0.4}},
        "b": {0: {"ap50": 0.3}, 1: {"ap50": 0.5}, 2: {"ap50": 0.9}},
        "c": {0: {"ap50": 0.4}, 1: {"ap50": 0.5}},
    }
    lines = {line.row.key: line.cells for line in summarise([A, B, C, Row("d", "D", {})], measured)}
    assert list(lines) == ["a", "b", "c"]  # what was not measured is left out
    # Both seeds gain 0.1, so the step has no spread although the metrics have; seed 2 has no partner.
    assert lines["b"]["step"].mean == pytest.approx(0.1)
    assert lines["b"]["step"].std == pytest.approx(0.0)
    assert lines["b"]["ap50"].mean == pytest.approx(1.7 / 3)
    assert lines["b"]["of_bound"].values == {0: pytest.approx(0.75), 1: pytest.approx(1.0)}
    assert "step" not in lines["a"]
    assert "of_bound" not in lines["c"]


def test_summarise__a_bound_of_nothing_gives_no_fraction() -> None:
    lines = summarise([A], {"a": {0: {"ap50": 0.2}}, "c": {0: {"ap50": 0.0}}})
    assert "of_bound" not in lines[0].cells


@pytest.mark.parametrize(
    ("name", "cell", "text"),
    [
        ("ap50", Spread(0.6123, 0.0131), "0.612 ± 0.013"),
        ("ap50", Spread(0.6123, None), "0.612"),
        ("step", Spread(0.0231, 0.004), "+0.023 ± 0.004"),
        ("step", Spread(-0.02, None), "-0.020"),
        ("of_bound", Spread(0.951, 0.012), "95.1 ± 1.2 %"),
        ("boxes_per_image", Spread(2.5, None), "2.50"),
        ("corloc", None, "–"),
    ],
)
def test_shown__a_cell(name: str, cell: Spread | None, text: str) -> None:
    assert shown(name, cell) == text


def test_markdown__only_used_columns_and_says_where_seeds_are_missing() -> None:
    measured = {
        "a": {0: {"ap50": 0.2}, 1: {"ap50": 0.4}},
        "b": {0: {"ap50": 0.5}},
        "pgt/x": {0: {"recall50": 1.0}},
    }
    lines = summarise([A, B, Row("pgt/x", "X", {"pgt": {}})], measured)
    assert markdown(lines, (0, 1)).splitlines() == [
        "| row | AP50, test | PGT recall | AP50 step |",
        "| --- | --- | --- | --- |",
        "| A | 0.300 ± 0.141 | – | – |",
        "| B (1 of 2 seeds) | 0.500 | – | +0.300 |",
        "| X | – | 1.000 | – |",
    ]


def test_run_rows__a_failure_leaves_the_others_alone_and_a_signal_does_not() -> None:
    order: list[tuple[str, int]] = []

    def metrics(row: Row, seed: int) -> Metrics:
        order.append((row.key, seed))
        if (row.key, seed) == ("a", 0):
            raise InputError("no boxes")
        return {"ap50": 0.5}

    measured, problems = run_rows([A, B], (0, 1), metrics)
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert measured["a"].keys() == {1}
    assert measured["b"].keys() == {0, 1}
    assert problems == ["a, seed 0: no boxes"]

    def stopped(row: Row, seed: int) -> Metrics:
        raise PreemptedError("stopped")

    with pytest.raises(PreemptedError):
        run_rows([A], (0,), stopped)


def true_image() -> ImageGroundTruth:
    return ImageGroundTruth(
        height=32, width=48, boxes_xyxy=np.array([[4.0, 6, 24, 26], [20, 8, 40, 30], [0, 0, 9, 9]]),
        classes=np.array([1, 2, 0]), difficult=np.array([False, False, True]), crowd=np.zeros(3, bool),
    )  # fmt: skip


def detections() -> Detections:
    """Cat and dog well placed, a weaker second cat, and a bird that no tag names."""
    boxes = np.array([[4, 6, 24, 26], [20, 8, 40, 30], [30, 20, 40, 28], [0, 0, 8, 8]], np.float32)
    return Detections(boxes, np.array([1, 2, 1, 0]), np.array([0.9, 0.8, 0.5, 1.0], np.float32))


def test_true_tags__of_objects_that_count() -> None:
    assert true_tags(true_image()) == [1, 2]


def test_pseudo_boxes__follow_the_rule_and_the_tags() -> None:
    found = {"a": detections()}
    few = pseudo_boxes(found, {"a": [1, 2]}, Rule("topk"))["a"]
    more = pseudo_boxes(found, {"a": [1, 2]}, Rule("improved", tau_s=0.5))["a"]
    assert few.scores.tolist() == pytest.approx([0.9, 0.8])
    assert more.scores.tolist() == pytest.approx([0.9, 0.5, 0.8])


def test_pgt_metrics__a_stricter_threshold_is_more_precise(tmp_path: Path) -> None:
    make_voc(tmp_path)
    labeled = LabeledSplit(open_split("tiny_test", tmp_path), {"img_4": true_image()})
    found = {"img_4": detections()}
    loose = pgt_metrics(found, labeled, PgtConfig(tau_s=0.5))
    strict = pgt_metrics(found, labeled, PgtConfig(tau_s=0.6))
    assert loose == {"precision": pytest.approx(2 / 3), "recall": 1.0, "F1": pytest.approx(0.8)}
    assert strict == {"precision": 1.0, "recall": 1.0, "F1": 1.0}


def test_points__in_order_of_the_value_without_undefined_ones() -> None:
    measured: dict[float, dict[int, Metrics]] = {
        0.5: {0: {"x": 0.1}, 1: {"x": 0.3}}, 0.1: {0: {"x": 0.7}}, 0.9: {0: {"x": math.nan}}, 0.2: {},
    }  # fmt: skip
    assert [(value, found.mean) for value, found in points(measured)["x"]] == [
        (0.1, 0.7),
        (0.5, pytest.approx(0.2)),
    ]


@pytest.mark.parametrize(
    ("drop", "used", "values"),
    [("paper", "paper", TAU_RAW), ("off", "paper", TAU_RAW), ("percentile", "percentile", TAU_FRACTION)],
)
def test_drop_grid__the_base_point_is_trained_once(drop: str, used: str, values: tuple[float, ...]) -> None:
    base = RetrainConfig.model_validate({"roi_drop": drop, "tau_cls": 0.85, "tau_reg": 0.85})
    grid = drop_grid(base, "topk")
    assert [value for value, _ in grid["tau_cls"]] == sorted({*values, 0.85})
    shared = {row.key for _, row in grid["tau_cls"]} & {row.key for _, row in grid["tau_reg"]}
    assert shared == {f"sweeps/drop={used},cls=0.85,reg=0.85"}
    assert grid["none"][0][1].changes["retrain"]["roi_drop"] == "off"


def test_drop_grid__points_that_the_table_has_are_its_rows(tmp_path: Path) -> None:
    base = RetrainConfig()
    grid = drop_grid(base, "improved")
    shared = {row.key for _, row in grid["tau_cls"]} & {row.key for _, row in grid["tau_reg"]}
    assert shared == {"faster-rcnn/improved-drop"}
    assert [row.key for _, row in grid["none"]] == ["faster-rcnn/improved"]
    # The rows are trained with what the point says, whatever the table's own changes are.
    runs = bench(tmp_path)
    row = dict(grid["tau_cls"])[base.tau_cls]
    config = RetrainConfig.model_validate(runs.settings("retrain", row.changes["retrain"]).model_dump())
    assert (config.roi_drop, config.tau_cls, config.tau_reg) == ("paper", base.tau_cls, base.tau_reg)


def test_sweep__table_and_picture(tmp_path: Path) -> None:
    curve = {"recall": [(0.0, Spread(0.5, None)), (0.3, Spread(0.75, 0.01))]}
    sweep = Sweep(
        "tau_s", "tiny_train", "tau_o = 0.85", {"paper": curve, "improved": {"recall": curve["recall"][1:]}}
    )
    assert sweep.markdown().splitlines() == [
        "| tau_s | recall, paper | recall, improved |",
        "| --- | --- | --- |",
        "| 0 | 0.500 | – |",
        "| 0.3 | 0.750 ± 0.010 | 0.750 ± 0.010 |",
    ]
    sweep.plot(tmp_path / "tau_s.png")
    assert (tmp_path / "tau_s.png").is_file()
    Sweep("tau_s", "tiny_train", "", {"paper": {}}).plot(tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_pgt_rows__are_rules_of_the_stage(tmp_path: Path) -> None:
    modes = [bench(tmp_path).settings("pgt", row.changes["pgt"]).model_dump()["mode"] for row in PGT_ROWS]
    assert modes == ["topk", "paper", "improved"]
