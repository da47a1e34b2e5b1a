"""RoI drop against a slow version written from the rule, RoI by RoI."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stages.retrain.roi_drop import DropMeter, DropMode, DropRule, roi_drop

MODES: tuple[DropMode, ...] = ("off", "paper", "independent", "normalized", "percentile")
Roi = tuple[float, float, bool]


def slow_quantile(values: list[float], level: float) -> float:
    ordered = sorted(values)
    position = level * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def slow_scaled(value: float, values: list[float]) -> float:
    spread = max(values) - min(values)
    return (value - min(values)) / spread if spread > 0 else 0.0


def slow_drop(rois: list[Roi], step: int, rule: DropRule) -> tuple[list[float], list[float]]:
    """One RoI after the other, as the rule reads."""
    keep_cls, keep_reg = [1.0] * len(rois), [1.0] * len(rois)
    cls_values = [cls for cls, _, foreground in rois if foreground]
    reg_values = [reg for _, reg, foreground in rois if foreground]
    if rule.mode == "off" or step < rule.start_step:
        return keep_cls, keep_reg
    for index, (cls, reg, foreground) in enumerate(rois):
        if not foreground:
            continue
        tau_cls, tau_reg = rule.tau_cls, rule.tau_reg
        if rule.mode == "normalized":
            cls, reg = slow_scaled(cls, cls_values), slow_scaled(reg, reg_values)
        if rule.mode == "percentile":
            tau_cls, tau_reg = slow_quantile(cls_values, tau_cls), slow_quantile(reg_values, tau_reg)
        if rule.mode == "independent":
            keep_cls[index] = 0.0 if cls > tau_cls else 1.0
            keep_reg[index] = 0.0 if reg > tau_reg else 1.0
        elif cls > tau_cls and reg > tau_reg:
            keep_cls[index] = keep_reg[index] = 0.0
    return keep_cls, keep_reg


def gaps(rois: list[Roi], rule: DropRule) -> list[float]:
    """Distances between losses and thresholds in the modes that compute one of the two in float32."""
    found: list[float] = []
    for column, tau in ((0, rule.tau_cls), (1, rule.tau_reg)):
        values = [roi[column] for roi in rois if roi[2]]
        if values and rule.mode == "normalized":
            found += [abs(slow_scaled(value, values) - tau) for value in values]
        if values and rule.mode == "percentile":
            # Equality is exact when the quantile is one of the losses that its two neighbours agree on.
            quantile = slow_quantile(values, tau)
            found += [abs(value - quantile) for value in values if value != quantile]
    return found


# Losses and thresholds on a binary grid, so that float32 and Python agree exactly on every comparison.
losses = st.integers(0, 64).map(lambda value: value / 8)
rois = st.lists(st.tuples(losses, losses, st.booleans()), min_size=0, max_size=24)


@settings(max_examples=300, deadline=None)
@given(
    rois, st.sampled_from(MODES), st.integers(0, 64), st.integers(0, 64), st.integers(0, 3), st.integers(0, 3)
)
def test_roi_drop__agrees_with_slow_version(
    table: list[Roi], mode: DropMode, tau_cls: int, tau_reg: int, start: int, step: int
) -> None:
    unit = {"normalized": 64, "percentile": 64}.get(mode, 8)
    rule = DropRule(mode, tau_cls / unit, tau_reg / unit, start)
    cls = torch.tensor([roi[0] for roi in table])
    reg = torch.tensor([roi[1] for roi in table])
    foreground = torch.tensor([roi[2] for roi in table], dtype=torch.bool)
    # A loss that equals its computed threshold up to rounding may fall on either side.
    assume(all(gap >= 1e-5 for gap in gaps(table, rule)))
    kept = roi_drop(cls, reg, foreground, step, rule)
    slow_cls, slow_reg = slow_drop(table, step, rule)
    assert kept.cls_R.tolist() == slow_cls
    assert kept.reg_R.tolist() == slow_reg


@pytest.mark.parametrize(
    ("cls", "reg", "foreground", "kept"),
    [
        (5.0, 5.0, True, 0.0),  # both high: dropped
        (5.0, 3.0, True, 1.0),  # only one high: kept
        (3.0, 5.0, True, 1.0),
        (4.0, 4.0, True, 1.0),  # equal to the thresholds: kept
        (9.0, 9.0, False, 1.0),  # background: never dropped
    ],
)
def test_roi_drop__paper_rule(cls: float, reg: float, foreground: bool, kept: float) -> None:
    weights = roi_drop(torch.tensor([cls]), torch.tensor([reg]), torch.tensor([foreground]), 10, DropRule())
    assert weights.cls_R.item() == weights.reg_R.item() == kept


def test_roi_drop__nothing_before_start_step() -> None:
    rule = DropRule(start_step=7)
    arguments = (torch.tensor([9.0]), torch.tensor([9.0]), torch.tensor([True]))
    assert roi_drop(*arguments, 6, rule).cls_R.item() == 1.0
    assert roi_drop(*arguments, 7, rule).cls_R.item() == 0.0


@pytest.mark.parametrize("mode", ["normalized", "percentile"])
def test_roi_drop__equal_losses_are_kept(mode: DropMode) -> None:
    same = torch.full((5,), 3.0)
    kept = roi_drop(same, same, torch.ones(5, dtype=torch.bool), 1, DropRule(mode, 0.5, 0.5))
    assert kept.cls_R.tolist() == [1.0] * 5


@pytest.mark.parametrize("mode", MODES)
def test_roi_drop__no_foreground_keeps_all(mode: DropMode) -> None:
    kept = roi_drop(
        torch.rand(4), torch.rand(4), torch.zeros(4, dtype=torch.bool), 1, DropRule(mode, 0.0, 0.0)
    )
    assert kept.cls_R.tolist() == kept.reg_R.tolist() == [1.0] * 4


def test_roi_drop__weights_carry_no_gradient_and_keep_dtype() -> None:
    cls = torch.tensor([5.0, 1.0], dtype=torch.bfloat16, requires_grad=True)
    kept = roi_drop(cls, cls, torch.tensor([True, True]), 1, DropRule())
    assert not kept.cls_R.requires_grad
    assert kept.cls_R.dtype == torch.bfloat16


def test_drop_meter__counts_since_last_call() -> None:
    meter = DropMeter(DropRule())
    high = torch.tensor([9.0, 9.0, 0.0, 0.0, 9.0])
    foreground = torch.tensor([True, True, True, True, False])
    meter(high, high, foreground)
    meter(high[:1], high[:1], foreground[:1])
    assert [int(count) for count in meter.pop_counts()] == [3, 5]
    assert [int(count) for count in meter.pop_counts()] == [0, 0]
