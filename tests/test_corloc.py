"""CorLoc by hand."""

from __future__ import annotations

import math

import pytest

from stages.core.errors import SchemaError
from stages.core.evaluation.corloc import corloc
from tests.evaluation_builders import found_boxes, true_image

A, B = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)


def test_corloc__by_hand() -> None:
    ground_truth = {
        "hit": true_image([(0, A), (0, B)]),
        "second_best_hits": true_image([(0, A), (1, B)]),
        "nothing_found": true_image([(0, A)]),
        "only_difficult": true_image([(0, A)], difficult=[0]),
        "negative": true_image([(1, A)]),
    }
    detections = {
        "hit": found_boxes([(0, 0.3, A), (0, 0.6, B)]),
        "second_best_hits": found_boxes([(0, 0.8, A), (0, 0.9, B), (1, 0.1, B)]),
        "only_difficult": found_boxes([(0, 0.9, A)]),
        "negative": found_boxes([(0, 0.99, A), (1, 0.2, (0, 0, 10, 5))]),  # IoU exactly .5
    }
    result = corloc(detections, ground_truth, 3)
    assert result.positive_images.tolist() == [3, 2, 0]
    assert result.per_class[:2].tolist() == pytest.approx([1 / 3, 1.0])
    assert math.isnan(result.per_class[2])
    assert result.mean == pytest.approx(2 / 3)


def test_corloc__a_difficult_object_is_no_hit() -> None:
    ground_truth = {"p": true_image([(0, A), (0, B)], difficult=[1])}
    assert corloc({"p": found_boxes([(0, 0.9, B)])}, ground_truth, 1).mean == 0


def test_corloc__of_equal_scores_the_first_counts() -> None:
    ground_truth = {"p": true_image([(0, A)])}
    assert corloc({"p": found_boxes([(0, 0.5, A), (0, 0.5, B)])}, ground_truth, 1).mean == 1
    assert corloc({"p": found_boxes([(0, 0.5, B), (0, 0.5, A)])}, ground_truth, 1).mean == 0


def test_corloc__no_ground_truth_is_undefined() -> None:
    assert math.isnan(corloc({}, {"p": true_image([])}, 1).mean)


def test_corloc__unknown_image_is_refused() -> None:
    with pytest.raises(SchemaError, match="not in the split: q"):
        corloc({"q": found_boxes([(0, 0.5, A)])}, {"p": true_image([(0, A)])}, 1)
