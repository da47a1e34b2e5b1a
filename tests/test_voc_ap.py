"""VOC AP against a case worked by hand and a slow direct implementation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import SchemaError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.voc_ap import area_ap, eleven_point_ap, voc_ap
from stages.core.structures.detections import Detections
from tests.evaluation_builders import found_boxes, random_case, true_image

A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (0.0, 20.0, 10.0, 30.0)
NOWHERE = (40.0, 40.0, 50.0, 50.0)


def slow_iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def slow_ap(
    detections: Mapping[str, Detections],
    ground_truth: Mapping[str, ImageGroundTruth],
    label: int,
    threshold: float,
) -> tuple[float, float]:
    """The devkit's loop, one detection at a time, and AP straight from its definition."""
    rows = [
        (-float(d.scores[i]), name, i, d.boxes_xyxy[i].tolist())
        for name, d in detections.items()
        for i in range(len(d))
        if d.classes[i] == label
    ]
    positives = sum(
        1
        for t in ground_truth.values()
        for i in range(len(t))
        if t.classes[i] == label and not t.difficult[i]
    )
    if not positives:
        return math.nan, math.nan
    taken: set[tuple[str, int]] = set()
    hits: list[int] = []
    for _, name, _, box in sorted(rows, key=lambda row: row[:3]):
        true, best, which = ground_truth[name], -1.0, -1
        for j in range(len(true)):
            if true.classes[j] == label and slow_iou(box, true.boxes_xyxy[j].tolist()) > best:
                best, which = slow_iou(box, true.boxes_xyxy[j].tolist()), j
        if best >= threshold and true.difficult[which]:
            continue
        right = best >= threshold and (name, which) not in taken
        if right:
            taken.add((name, which))
        hits.append(int(right))
    points = [(sum(hits[: k + 1]), sum(hits[: k + 1]) / (k + 1)) for k in range(len(hits))]
    eleven = sum(max((p for f, p in points if 10 * f >= k * positives), default=0.0) for k in range(11)) / 11
    area = sum(max(p for f, p in points if f >= n) for n in range(1, sum(hits) + 1)) / positives
    return eleven, area


def test_voc_ap__by_hand() -> None:
    # Class 0: 3 objects. By score: hit, miss, hit, duplicate -> precision 1, 1/2, 2/3, 1/2 at recall 1/3, 1/3,
    # 2/3, 2/3. Area = (1 + 2/3) / 3. 11-point: recalls 0-.3 see 1, .4-.6 see 2/3, the rest 0.
    ground_truth = {"p": true_image([(0, A), (0, B)]), "q": true_image([(0, C), (1, A)])}
    detections = {
        "p": found_boxes([(0, 0.9, A), (0, 0.7, B), (0, 0.6, A)]),
        "q": found_boxes([(0, 0.8, NOWHERE)]),
    }
    result = voc_ap(detections, ground_truth, num_classes=3)
    assert result.area[0] == pytest.approx((1 + 2 / 3) / 3)
    assert result.eleven_point[0] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    # Class 1 has an object and no detection: 0. Class 2 has no object: nan, and is not in the mean.
    assert result.area[1] == 0
    assert math.isnan(result.area[2])
    assert result.mean_area == pytest.approx((1 + 2 / 3) / 6)
    assert result.positives.tolist() == [3, 1, 0]


def test_voc_ap__difficult_neither_helps_nor_hurts() -> None:
    detections = {"p": found_boxes([(0, 0.9, B), (0, 0.8, B), (0, 0.7, A)])}
    # B difficult: both detections on it are ignored, A is found first: AP 1.
    with_difficult = voc_ap(detections, {"p": true_image([(0, A), (0, B)], difficult=[1])}, 1)
    assert with_difficult.mean_area == 1
    assert with_difficult.positives.tolist() == [1]
    # B not annotated at all: the same two are false positives.
    assert voc_ap(detections, {"p": true_image([(0, A)])}, 1).mean_area == pytest.approx(1 / 3)


def test_voc_ap__crowd_is_ignored() -> None:
    ground_truth = {"p": true_image([(0, A), (0, B)], crowd=[1])}
    assert voc_ap({"p": found_boxes([(0, 0.9, B), (0, 0.7, A)])}, ground_truth, 1).mean_area == 1


def test_voc_ap__threshold_is_inclusive() -> None:
    ground_truth = {"p": true_image([(0, (0, 0, 10, 10))])}
    detections = {"p": found_boxes([(0, 0.9, (0, 0, 10, 5))])}  # IoU exactly .5
    assert voc_ap(detections, ground_truth, 1, 0.5).mean_area == 1
    assert voc_ap(detections, ground_truth, 1, 0.51).mean_area == 0


def test_eleven_point_ap__recall_three_tenths_counts_as_reached() -> None:
    # 3 of 10 found: recall .3, though 3 * .1 > .3 in floating point.
    right = np.array([True, True, True])
    assert eleven_point_ap(right, ~right, 10) == pytest.approx(4 / 11)
    assert area_ap(right, ~right, 10) == pytest.approx(0.3)


@pytest.mark.parametrize("detections", [{}, {"p": Detections.empty()}])
def test_voc_ap__no_detections(detections: dict[str, Detections]) -> None:
    result = voc_ap(detections, {"p": true_image([(0, A)])}, 2)
    assert result.mean_area == 0
    assert result.mean_eleven_point == 0


def test_voc_ap__no_ground_truth() -> None:
    result = voc_ap({"p": found_boxes([(0, 0.9, A)])}, {"p": true_image([])}, 2)
    assert math.isnan(result.mean_area)
    assert math.isnan(result.mean_eleven_point)


@given(st.integers(0, 100_000), st.sampled_from([0.3, 0.5, 0.75]))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_voc_ap__equals_slow_implementation(seed: int, threshold: float) -> None:
    detections, ground_truth = random_case(seed)
    result = voc_ap(detections, ground_truth, 3, threshold)
    expected = np.array([slow_ap(detections, ground_truth, label, threshold) for label in range(3)])
    np.testing.assert_allclose(result.eleven_point, expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(result.area, expected[:, 1], atol=1e-12)


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ({"unknown": found_boxes([(0, 0.5, A)])}, "not in the split: unknown"),
        ({"p": found_boxes([(2, 0.5, A)])}, "class index outside 0..1"),
        ({"p": found_boxes([(-1, 0.5, A)])}, "class index outside 0..1"),
        ({"p": found_boxes([(0, math.nan, A)])}, "not a finite number"),
        ({"p": found_boxes([(0, 0.5, (0, 0, math.inf, 1))])}, "not a finite number"),
    ],
)
def test_voc_ap__refuses(detections: dict[str, Detections], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        voc_ap(detections, {"p": true_image([(0, A)])}, 2)
