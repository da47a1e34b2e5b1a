"""Quality of pseudo boxes and of prompting points, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from stages.core.artifacts.schemas import PROMPTS
from stages.core.artifacts.table import ImageRows, Table, gather
from stages.core.errors import SchemaError
from stages.core.evaluation.overlap import mask_overlap
from stages.core.evaluation.pgt_quality import pgt_quality
from stages.core.evaluation.prompt_quality import prompt_quality
from tests.evaluation_builders import box_mask, found_boxes, true_image

A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (0.0, 20.0, 10.0, 30.0)
NOWHERE = (40.0, 40.0, 50.0, 50.0)


def test_pgt_quality__by_hand() -> None:
    ground_truth = {
        "p": true_image([(0, A), (0, B), (1, C)]),
        "q": true_image([(0, A), (0, B)], difficult=[1]),
        "r": true_image([(1, A)]),
    }
    pseudo = {
        "p": found_boxes([(0, 0.9, A), (0, 0.8, A), (1, 0.9, NOWHERE)]),  # right, duplicate, wrong
        "q": found_boxes([(0, 0.9, A), (0, 0.5, B)]),  # right, ignored
    }
    result = pgt_quality(pseudo, ground_truth, 3)
    assert (result.right.tolist(), result.wrong.tolist()) == ([2, 0, 0], [1, 1, 0])
    assert result.positives.tolist() == [3, 2, 0]
    assert result.precision == pytest.approx(2 / 4)
    assert result.recall == pytest.approx(2 / 5)
    assert result.f1 == pytest.approx(2 * 0.5 * 0.4 / 0.9)
    assert result.class_precision[:2].tolist() == pytest.approx([2 / 3, 0])
    assert math.isnan(result.class_recall[2])


def test_pgt_quality__masks() -> None:
    ground_truth = {"p": true_image([(0, A)], masks=[box_mask(A)])}
    pseudo = {"p": found_boxes([(0, 0.9, A)], masks=[box_mask((0, 0, 10, 4))])}
    assert pgt_quality(pseudo, ground_truth, 1).precision == 1
    assert pgt_quality(pseudo, ground_truth, 1, 0.5, mask_overlap).precision == 0


def test_pgt_quality__nothing_at_all() -> None:
    empty = pgt_quality({}, {"p": true_image([])}, 1)
    assert all(math.isnan(value) for value in (empty.precision, empty.recall, empty.f1))
    assert pgt_quality({}, {"p": true_image([(0, A)])}, 1).recall == 0


def prompts_of(images: dict[str, Sequence[tuple[float, float, int, int]]]) -> Table:
    """Points (x, y, class, source)."""
    rows = {}
    for name, points in images.items():
        values = {key: np.zeros(len(points), dtype=dtype) for key, dtype in PROMPTS.columns.items()}
        for key, position in (("x", 0), ("y", 1), ("class_index", 2), ("source", 3)):
            values[key][:] = [point[position] for point in points]
        rows[name] = ImageRows(values, {"image_h": 50, "image_w": 60})
    return gather(PROMPTS, rows)


def test_prompt_quality__by_hand() -> None:
    ground_truth = {"p": true_image([(0, A), (0, B), (1, C)], difficult=[2]), "q": true_image([(1, A)])}
    prompts = prompts_of(
        {
            "p": [
                (5, 5, 0, 0),  # on A
                (5, 5, 1, 0),  # on A, but class 1
                (10, 5, 0, 0),  # half-open: x 10 is off A
                (5, 25, 1, 1),  # on the difficult C: right, nothing to find
                (25, 5, -1, 2),  # class-agnostic, on B
                (70, 5, -1, 2),  # outside the image
            ]
        }
    )
    result = prompt_quality(prompts, ground_truth)
    assert result.precision("coarse") == pytest.approx(1 / 3)
    assert result.precision("fine") == 1
    assert result.precision("cross") == 0.5
    assert result.objects == 3
    assert result.object_recall("coarse") == pytest.approx(1 / 3)
    assert result.object_recall("fine") == 0
    assert result.object_recall() == pytest.approx(2 / 3)
    assert result.points_per_image == 3


def test_prompt_quality__refuses_unknown_images_and_sources() -> None:
    ground_truth = {"p": true_image([(0, A)])}
    with pytest.raises(SchemaError, match="not in the split: z"):
        prompt_quality(prompts_of({"z": [(1, 1, 0, 0)]}), ground_truth)
    with pytest.raises(SchemaError, match=r"source outside 0\.\.2"):
        prompt_quality(prompts_of({"p": [(1, 1, 0, 3)]}), ground_truth)


def test_prompt_quality__no_points() -> None:
    result = prompt_quality(prompts_of({"p": []}), {"p": true_image([(0, A)])})
    assert math.isnan(result.precision("coarse"))
    assert result.object_recall() == 0
