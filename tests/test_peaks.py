"""Algorithm 1 case by case, and the properties every answer has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F

from stages.core.ops.peaks import max_pool, peaks, refine_subpixel, suppress_neighbours

MAPS = arrays(np.float32, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.sampled_from(
    [0.0, 0.25, 0.5, 0.9, 0.95, 1.0]
))  # fmt: skip


def spikes(
    size: tuple[int, int], *points: tuple[int, int, float]
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    values = np.zeros(size, np.float32)
    for x, y, value in points:
        values[y, x] = value
    return values


@pytest.mark.parametrize(
    ("points", "window", "threshold", "expected"),
    [
        # one peak, reported at its pixel's centre
        ([(7, 3, 1.0)], 5, 0.9, [(7.5, 3.5)]),
        # exactly at the threshold is kept, just below is not
        ([(2, 2, 1.0), (12, 12, 0.9)], 5, 0.9, [(2.5, 2.5), (12.5, 12.5)]),
        ([(2, 2, 1.0), (12, 12, 0.89)], 5, 0.9, [(2.5, 2.5)]),
        # sorted by value
        ([(2, 2, 0.92), (12, 12, 1.0)], 5, 0.9, [(12.5, 12.5), (2.5, 2.5)]),
        # equal values: the upper, then the left one first
        ([(12, 2, 1.0), (2, 2, 1.0), (2, 12, 1.0)], 5, 0.9, [(2.5, 2.5), (12.5, 2.5), (2.5, 12.5)]),
        # within the window the smaller one is no maximum
        ([(4, 4, 1.0), (6, 4, 0.95)], 5, 0.9, [(4.5, 4.5)]),
        # equal and 3 apart: outside each other's window (radius 2), further than k/2 = 2.5: both stay
        ([(4, 4, 1.0), (7, 4, 1.0)], 5, 0.9, [(4.5, 4.5), (7.5, 4.5)]),
        # equal and 2 apart (not touching): the later one is removed
        ([(4, 4, 1.0), (6, 4, 1.0)], 5, 0.9, [(4.5, 4.5)]),
        # corners are allowed
        ([(0, 0, 1.0), (15, 15, 0.95)], 5, 0.9, [(0.5, 0.5), (15.5, 15.5)]),
        # a window larger than the map leaves one peak
        ([(2, 2, 1.0), (12, 12, 0.95)], 65, 0.9, [(2.5, 2.5)]),
    ],
)
def test_peaks__table(
    points: list[tuple[int, int, float]], window: int, threshold: float, expected: list[tuple[float, float]]
) -> None:
    found, values = peaks(spikes((16, 16), *points), window, threshold)
    assert [tuple(p) for p in found.tolist()] == expected
    assert values.tolist() == sorted(values.tolist(), reverse=True)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_peaks__flat_map_has_none(value: float) -> None:
    found, values = peaks(np.full((9, 9), value, np.float32), 5, 0.0)
    assert found.shape == (0, 2)
    assert values.shape == (0,)


def test_peaks__plateau_is_one_point_at_its_middle() -> None:
    values = np.zeros((20, 20), np.float32)
    values[4:9, 10:15] = 1.0
    found, _ = peaks(values, 5, 0.9)
    assert found.tolist() == [[12.5, 6.5]]


def test_peaks__corner_plateau_does_not_eat_the_budget() -> None:
    # What bilinear enlargement does to a corner maximum: a block of equal values, 49 candidates for 25 places.
    values = spikes((64, 64), (50, 50, 0.97))
    values[:7, :7] = 1.0
    found, scores = peaks(values, 17, 0.9)
    assert len(found) == 2
    assert scores.tolist() == pytest.approx([1.0, 0.97])


def test_peaks__ring_keeps_a_member_not_its_empty_centre() -> None:
    values = np.zeros((15, 15), np.float32)
    values[4:11, 4:11] = 1.0
    values[5:10, 5:10] = 0.0
    found, scores = peaks(values, 17, 0.9)
    assert len(found) == 1
    assert scores[0] == 1.0


def test_peaks__at_most_the_limit() -> None:
    grid = [(x, y, 1.0) for x in range(1, 40, 6) for y in range(1, 40, 6)]
    assert len(peaks(spikes((40, 40), *grid), 5, 0.9)[0]) == 25
    assert len(peaks(spikes((40, 40), *grid), 5, 0.9, limit=7)[0]) == 7


@settings(max_examples=60, deadline=None)
@given(MAPS, st.sampled_from([3, 5, 9, 17]))
def test_peaks__spaced_sorted_and_above_the_threshold(
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]], window: int
) -> None:
    found, scores = peaks(values, window, 0.5)
    distance = np.linalg.norm(found[:, None] - found[None], axis=2) + np.eye(len(found)) * 1e9
    assert (distance > window / 2).all()
    assert (np.diff(scores) <= 0).all()
    assert (scores >= 0.5).all()
    cells = (found - 0.5).astype(int)
    np.testing.assert_array_equal(values[cells[:, 1], cells[:, 0]], scores)
    if values.max() > values.min() and values.max() >= 0.5:
        assert scores[0] == values.max()


@settings(max_examples=40, deadline=None)
@given(MAPS, st.sampled_from([3, 5, 9, 17, 129]))
def test_max_pool__bits_of_torch(
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]], window: int
) -> None:
    values = values - np.float32(0.5)  # borders are clipped, not padded with zeros
    rows = F.max_pool2d(torch.from_numpy(values)[None, None], (1, window), 1, (0, window // 2))
    square = F.max_pool2d(rows, (window, 1), 1, (window // 2, 0))
    assert max_pool(values, window).tobytes() == square[0, 0].numpy().tobytes()


@settings(max_examples=40, deadline=None)
@given(MAPS, st.sampled_from([3, 5, 9]), st.integers(0, 6), st.integers(0, 6))
def test_peaks__low_surroundings_change_nothing(
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]], window: int, left: int, top: int
) -> None:
    """Only the box around what reaches the threshold is searched."""
    values = np.pad(values, 1)
    found, scores = peaks(values, window, 0.5)
    shifted, same = peaks(np.pad(values, ((top, 3), (left, 2))), window, 0.5)
    np.testing.assert_array_equal(shifted, found + np.array([left, top], np.float32))
    np.testing.assert_array_equal(same, scores)


def test_suppress_neighbours__radius_is_inclusive_and_removed_points_remove_nothing() -> None:
    points = np.array([[0, 0], [2, 0], [4, 0]], np.float32)
    assert suppress_neighbours(points, 2.0).tolist() == [0, 2]
    assert suppress_neighbours(points, 1.9).tolist() == [0, 1, 2]


def test_refine_subpixel__finds_the_top_of_a_parabola() -> None:
    x = np.arange(9, dtype=np.float32)
    values = (1.0 - 0.02 * (x[None, :] - 4.3) ** 2 - 0.02 * (x[:, None] - 2.8) ** 2).astype(np.float32)
    found, _ = peaks(values, 3, 0.9)
    np.testing.assert_allclose(refine_subpixel(values, found), [[4.8, 3.3]], atol=1e-3)


def test_refine_subpixel__border_and_flat_stay() -> None:
    values = spikes((5, 5), (0, 2, 1.0))
    assert refine_subpixel(values, np.array([[0.5, 2.5]], np.float32)).tolist() == [[0.5, 2.5]]
    assert refine_subpixel(np.ones((5, 5), np.float32), np.array([[2.5, 2.5]], np.float32)).tolist() == [
        [2.5, 2.5]
    ]
