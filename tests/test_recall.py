"""Proposal recall against brute force, and its edge cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import SchemaError
from stages.core.evaluation.overlap import FloatArray, box_iou
from stages.core.evaluation.recall import one_to_one, proposal_recall
from tests.evaluation_builders import random_case, true_image

A, B = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)


def boxes(*rows: tuple[float, float, float, float]) -> FloatArray:
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def brute_force(iou: FloatArray) -> list[float]:
    """Sort all pairs by IoU, walk down, take each pair whose two ends are free."""
    pairs = sorted((-iou[i, j], i, j) for i in range(iou.shape[0]) for j in range(iou.shape[1]))
    got, used = {}, set()
    for negative, i, j in pairs:
        if negative < 0 and i not in got and j not in used:
            got[i] = -negative
            used.add(j)
    return [got.get(i, 0.0) for i in range(iou.shape[0])]


@given(st.integers(0, 100_000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_proposal_recall__equals_brute_force(seed: int) -> None:
    detections, ground_truth = random_case(seed)
    proposals = {name: d.boxes_xyxy.astype(np.float64) for name, d in detections.items()}
    result = proposal_recall(proposals, ground_truth, curve_counts=(1, 3))
    matched: dict[int | None, list[float]] = {None: [], 1: [], 3: []}
    for name in sorted(ground_truth):
        iou = box_iou(
            ground_truth[name].boxes_xyxy[~ground_truth[name].difficult], proposals.get(name, boxes())
        )
        for count, values in matched.items():
            values += brute_force(iou[:, :count])
    for threshold in (0.5, 0.75, 0.9):
        for count, values in matched.items():
            expected = float(np.mean([v >= threshold for v in values])) if values else math.nan
            got = result.at(threshold) if count is None else result.curve(threshold)[count]
            assert got == pytest.approx(expected, nan_ok=True)


def test_one_to_one__a_box_serves_one_object() -> None:
    # Both objects overlap the first proposal best; the better pair wins, the other takes what is left.
    iou = np.array([[0.8, 0.3], [0.9, 0.0]])
    assert one_to_one(iou).tolist() == [0.3, 0.9]
    assert one_to_one(iou[:, :1]).tolist() == [0.0, 0.9]
    assert iou[1, 0] == 0.9  # the input is left alone


def test_proposal_recall__an_image_without_proposals_is_missed() -> None:
    ground_truth = {"p": true_image([(0, A)]), "q": true_image([(0, A), (1, B)])}
    result = proposal_recall({"p": boxes(A, B)}, ground_truth)
    assert result.at(0.5) == pytest.approx(1 / 3)
    assert result.boxes_per_image == 1.0  # two boxes over two images


def test_proposal_recall__crowd_and_difficult_are_not_looked_for() -> None:
    ground_truth = {"p": true_image([(0, A), (0, B), (0, (0, 0, 50, 50))], difficult=[1], crowd=[2])}
    result = proposal_recall({"p": boxes(A)}, ground_truth)
    assert result.at(0.9) == 1.0
    assert len(result.matched_iou) == 1


def test_proposal_recall__sizes_and_curve() -> None:
    big = (0.0, 0.0, 100.0, 100.0)
    middle = (0.0, 0.0, 32.0, 32.0)  # 32 x 32 is medium: the lower bound belongs to the class
    ground_truth = {"p": true_image([(0, A), (0, middle), (0, big)], size=(200, 200))}
    result = proposal_recall(
        {"p": boxes(big, (150, 150, 160, 160), A)}, ground_truth, curve_counts=(1, 3, 10)
    )
    assert [result.at(0.5, size) for size in ("small", "medium", "large")] == [1.0, 0.0, 1.0]
    assert result.curve(0.5) == pytest.approx({1: 1 / 3, 3: 2 / 3, 10: 2 / 3})


def test_proposal_recall__no_ground_truth_is_undefined() -> None:
    result = proposal_recall({"p": boxes(A)}, {"p": true_image([])})
    assert math.isnan(result.at(0.5))
    assert result.boxes_per_image == 1


@pytest.mark.parametrize(
    ("proposals", "message"),
    [
        ({"q": boxes(A)}, "not in the split: q"),
        ({"p": boxes((0, 0, math.nan, 1))}, "not a finite number"),
    ],
)
def test_proposal_recall__refuses(proposals: dict[str, FloatArray], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        proposal_recall(proposals, {"p": true_image([(0, A)])})
