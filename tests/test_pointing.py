"""Pointing accuracy of hand-made maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.core.artifacts.schemas import CAMS
from stages.core.artifacts.table import ImageRows, Table, gather
from stages.core.errors import SchemaError
from stages.core.evaluation.pointing import map_maximum, pointing_accuracy
from tests.evaluation_builders import HEIGHT, WIDTH, box_mask, true_image

LEFT, RIGHT = (0.0, 0.0, 30.0, 50.0), (30.0, 0.0, 60.0, 50.0)
Map = tuple[int, int, int, NDArray[np.float64]]  # class, kind, layer, values


def peak_at(row: int, column: int, grid: tuple[int, int] = (5, 6)) -> NDArray[np.float64]:
    values = np.zeros(grid)
    values[row, column] = 1
    return values


def cams_of(images: dict[str, Sequence[Map]]) -> Table:
    rows = {}
    for name, maps in images.items():
        shapes = [values.shape for *_, values in maps]
        columns = {
            "class_index": [m[0] for m in maps],
            "kind": [m[1] for m in maps],
            "layer": [m[2] for m in maps],
            "head": [-1 for _ in maps],
            "grid_h": [s[0] for s in shapes],
            "grid_w": [s[1] for s in shapes],
        }
        rows[name] = ImageRows(
            {key: np.array(values, dtype=CAMS.columns[key]) for key, values in columns.items()},
            {"image_h": HEIGHT, "image_w": WIDTH},
            {"values": [values.ravel() for *_, values in maps]},
        )
    return gather(CAMS, rows)


def test_pointing_accuracy__by_hand() -> None:
    ground_truth = {
        "p": true_image([(0, LEFT), (1, RIGHT)]),
        "q": true_image([(0, RIGHT)]),
        "r": true_image([(0, LEFT)], difficult=[0]),  # no counted object: no pair
    }
    cams = cams_of(
        {
            "p": [(0, 0, -1, peak_at(2, 1)), (1, 0, -1, peak_at(2, 1)), (0, 1, -1, peak_at(4, 0))],
            "q": [(0, 0, -1, peak_at(0, 5)), (1, 0, -1, peak_at(0, 5))],  # class 1 is not in q: not judged
            "r": [(0, 0, -1, peak_at(0, 0))],
        }
    )
    result = pointing_accuracy(cams, ground_truth, 3)
    assert result.pairs.tolist() == [2, 1, 0]
    assert result.accuracy("coarse") == pytest.approx(2 / 3)  # p/0 and q/0 hit, p/1 points at class 0
    assert result.accuracy("fine") == pytest.approx(1 / 3)  # only p/0 has a fine map, the others are misses
    assert result.class_accuracy("coarse")[:2].tolist() == [1.0, 0.0]
    assert math.isnan(result.class_accuracy("coarse")[2])
    assert result.class_mean("coarse") == 0.5
    assert result.kinds == ("coarse", "fine")
    assert result.maps_per_image == 2.0


def test_pointing_accuracy__cross_maps_are_judged_as_their_mean_and_by_layer() -> None:
    ground_truth = {"p": true_image([(0, LEFT)])}
    cams = cams_of(
        {
            "p": [
                (0, 2, 3, 0.6 * peak_at(1, 1)),
                (0, 2, 3, 1.0 * peak_at(1, 5)),
                (0, 2, 7, 0.6 * peak_at(1, 1)),
            ]
        }
    )
    result = pointing_accuracy(cams, ground_truth, 1)
    assert result.accuracy("cross") == 1.0  # .4 on the object, .33 beside it
    assert result.cross_layers == {3: (1, 2), 7: (1, 1)}


def test_pointing_accuracy__the_mask_decides_where_there_is_one() -> None:
    hole = true_image([(0, LEFT)], masks=[box_mask((0, 0, 10, 50))])
    cams = cams_of({"p": [(0, 0, -1, peak_at(2, 1))]})  # token centre at x 15: in the box, off the mask
    assert pointing_accuracy(cams, {"p": hole}, 1).accuracy("coarse") == 0
    assert pointing_accuracy(cams, {"p": true_image([(0, LEFT)])}, 1).accuracy("coarse") == 1


@pytest.mark.parametrize("values", [np.zeros((5, 6)), np.full((5, 6), 0.5), np.full((5, 6), np.nan)])
def test_pointing_accuracy__a_map_without_a_maximum_misses(values: NDArray[np.float64]) -> None:
    ground_truth = {"p": true_image([(0, (0.0, 0.0, 60.0, 50.0))])}
    assert pointing_accuracy(cams_of({"p": [(0, 0, -1, values)]}), ground_truth, 1).accuracy("coarse") == 0


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 6))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_map_maximum__is_the_maximum_of_the_enlarged_map(seed: int, height: int, width: int) -> None:
    values = np.random.default_rng(seed).random((height, width))
    image_h, image_w = 5 * height, 7 * width  # odd factors: a pixel centre falls on every token centre
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], size=(image_h, image_w), mode="bilinear", align_corners=False
    )[0, 0]
    point = map_maximum(values, image_h, image_w)
    assert point is not None
    assert enlarged[int(point[1]), int(point[0])].item() == pytest.approx(enlarged.max().item(), abs=1e-12)


@pytest.mark.parametrize(
    ("image", "label", "message"), [("z", 0, "not in the split: z"), ("p", 4, "class_index outside 0..1")]
)
def test_pointing_accuracy__refuses(image: str, label: int, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        pointing_accuracy(
            cams_of({image: [(label, 0, -1, peak_at(0, 0))]}), {"p": true_image([(0, LEFT)])}, 2
        )


def test_pointing_accuracy__no_ground_truth_is_undefined() -> None:
    assert math.isnan(pointing_accuracy(cams_of({"p": []}), {"p": true_image([])}, 2).accuracy("coarse"))
