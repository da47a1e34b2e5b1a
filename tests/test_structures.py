"""Columns that stay together: validation, selection, joining; detections and run lengths on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from stages.core.structures.columns import Column, Columns
from stages.core.structures.detections import Detections
from stages.core.structures.instances import Instances
from stages.core.structures.rle import (
    RLE,
    check_rle,
    decode_masks,
    encode_mask,
    encode_masks,
    rle_area,
    run_lengths_of,
)


@dataclass(frozen=True, eq=False)
class Mixed(Columns):
    """A structure with every kind of column."""

    numbers: Annotated[np.ndarray[Any, Any], Column("int64")]
    points: Annotated[Tensor, Column("float", 2)]
    names: Annotated[tuple[str, ...], Column()]
    grid: Annotated[Tensor | None, Column("bool", None, 3)] = None


def mixed(count: int, first: int = 0, grid: bool = False) -> Mixed:
    return Mixed(
        np.arange(first, first + count),
        torch.arange(first, first + count)[:, None].repeat(1, 2).float(),
        tuple(f"n{i}" for i in range(first, first + count)),
        torch.zeros(count, 2, 3, dtype=torch.bool) if grid else None,
    )


def rows_of(found: Mixed) -> list[int]:
    """The rows, which all columns must agree on."""
    numbers: list[int] = found.numbers.tolist()
    assert found.points[:, 0].tolist() == numbers
    assert list(found.names) == [f"n{i}" for i in numbers]
    assert len(found) == len(numbers)
    return numbers


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ([3, 0], [3, 0]),
        ([], []),
        ((1, 1), [1, 1]),
        ([-1], [3]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        ([True, False, False, True], [0, 3]),
        (np.array([2, 1]), [2, 1]),
        (np.array([False, True, True, False]), [1, 2]),
        (np.zeros(0, np.int64), []),
        (torch.tensor([2, 0]), [2, 0]),
        (torch.tensor([True, False, True, False]), [0, 2]),
    ],
)
@pytest.mark.parametrize("grid", [False, True])
def test_columns__index(index: Any, rows: list[int], grid: bool) -> None:
    chosen = mixed(4, grid=grid)[index]
    assert rows_of(chosen) == rows
    assert (chosen.grid is not None) == grid
    if chosen.grid is not None:
        assert chosen.grid.shape == (len(rows), 2, 3)


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (2, TypeError),  # a row is a structure of one row: [2:3]
        (np.array([[0]]), TypeError),
        (torch.tensor(1), TypeError),
        ([4], IndexError),
        (np.array([True, False]), IndexError),
        (torch.tensor([True, False]), IndexError),
    ],
)
def test_columns__refuses_index(index: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        mixed(4)[index]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"numbers": np.arange(2, dtype=np.int32)}, TypeError, "Mixed.numbers must be int64, it is int32"),
        ({"numbers": [0, 1]}, TypeError, "must be an array of int64, it is list"),
        ({"points": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, "must be float, it is int64"),
        ({"points": torch.zeros(2, 3)}, ValueError, r"points must have shape \(n, 2\), it is \(2, 3\)"),
        ({"points": torch.zeros(2)}, ValueError, "must have shape"),
        ({"grid": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, r"\(n, any, 3\)"),
        ({"names": "ab"}, TypeError, "must be a list or tuple, it is str"),
        ({"names": None}, TypeError, "must be a list or tuple"),
        ({"names": ("n0",)}, ValueError, "unequal length: numbers 2, points 2, names 1"),
        ({"grid": torch.zeros(1, 5, 3, dtype=torch.bool)}, ValueError, "grid 1"),
    ],
)
def test_columns__refuses_at_construction(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        replace(mixed(2), **changes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_columns__float_is_any_floating_dtype(dtype: torch.dtype) -> None:
    assert replace(mixed(2), points=torch.zeros(2, 2, dtype=dtype)).points.dtype == dtype


@pytest.mark.parametrize(
    ("parts", "rows"),
    [
        ([mixed(2)], [0, 1]),
        ([mixed(2), mixed(1, 5)], [0, 1, 5]),
        ([mixed(0), mixed(1, 5), mixed(0)], [5]),
        ([mixed(0), mixed(0)], []),
        ([mixed(0), mixed(2, grid=True)], [0, 1]),  # no row has no grid
    ],
)
def test_columns__cat(parts: list[Mixed], rows: list[int]) -> None:
    assert rows_of(Mixed.cat(parts)) == rows


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "no Mixed to join"),
        ([mixed(1), mixed(1, grid=True)], "some Mixed have grid and others have none"),
    ],
)
def test_columns__cat_refuses(parts: list[Mixed], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixed.cat(parts)


def test_columns__to_moves_tensors_alone() -> None:
    moved = mixed(2).to("meta")
    assert moved.points.device.type == "meta"
    assert moved.numbers.tolist() == [0, 1]
    assert moved.grid is None


# --- detections -------------------------------------------------------------------------------------


def found(scores: list[float], masks: bool = False) -> Detections:
    count = len(scores)
    boxes = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    rles = [encode_mask(np.arange(6).reshape(2, 3) == i) for i in range(count)]
    return Detections(boxes, np.arange(count), np.array(scores, np.float32), rles if masks else None)


def test_detections__empty() -> None:
    none = Detections.empty()
    assert len(none) == len(none.best_first()) == len(none.reaching(0.5)) == len(none[[]]) == 0
    assert len(Detections.cat([none, found([0.5], masks=True)]).masks or ()) == 1


@pytest.mark.parametrize(
    ("scores", "threshold", "classes"),
    [([0.2, 0.9, 0.5], 0.5, [1, 2]), ([0.2, 0.1], 0.5, []), ([0.5, 0.5], 0.0, [0, 1]), ([], 0.1, [])],
)
@pytest.mark.parametrize("masks", [False, True])
def test_detections__reaching(scores: list[float], threshold: float, classes: list[int], masks: bool) -> None:
    kept = found(scores, masks).reaching(threshold)
    assert kept.classes.tolist() == classes
    assert kept.boxes_xyxy[:, 0].tolist() == [4 * c for c in classes]
    assert (kept.masks is None) == (not masks)
    for c, mask in zip(classes, kept.masks or [], strict=False):
        assert np.flatnonzero(decode_masks([mask], 2, 3)).tolist() == [c]


@pytest.mark.parametrize(
    ("scores", "classes"), [([0.2, 0.9, 0.5], [1, 2, 0]), ([0.5, 0.7, 0.5], [1, 0, 2]), ([], [])]
)
def test_detections__best_first(scores: list[float], classes: list[int]) -> None:
    assert found(scores).best_first().classes.tolist() == classes


def test_detections__with_masks() -> None:
    masks = found([0.1, 0.2], masks=True).masks
    assert found([0.1, 0.2]).with_masks(masks).masks == masks
    assert found([0.1, 0.2], masks=True).with_masks(None).masks is None
    with pytest.raises(ValueError, match="unequal length"):
        found([0.1]).with_masks(masks)


@pytest.mark.parametrize("masks", [False, True])
def test_instances__from_torchvision_to_detections(masks: bool) -> None:
    output = {
        "boxes": torch.tensor([[0.0, 1, 2, 3]], dtype=torch.float16),
        "labels": torch.tensor([3]),
        "scores": torch.tensor([0.5], dtype=torch.float16),
    }
    if masks:
        output["masks"] = torch.tensor([[[[0.4, 0.6, 0.5]]]])
    made = Instances.from_torchvision(output).detections()
    assert made.boxes_xyxy.tolist() == [[0, 1, 2, 3]]
    assert (made.classes.tolist(), made.scores.tolist()) == ([2], [0.5])
    if masks:
        assert decode_masks(made.masks or [], 1, 3).tolist() == [[[0, 1, 0]]]
    else:
        assert made.masks is None


# --- run lengths -------------------------------------------------------------------------------------

SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9)


@given(hnp.arrays(np.bool_, SHAPES, elements=st.booleans()))
def test_rle__round_trip_and_area(masks: np.ndarray[Any, Any]) -> None:
    coded = encode_masks(masks)
    assert (decode_masks(coded, *masks.shape[1:]) == masks).all()
    assert [rle_area(rle) for rle in coded] == masks.sum(axis=(1, 2)).tolist()
    assert [encode_mask(mask) for mask in masks] == coded


@pytest.mark.parametrize("rles", [[], [encode_mask(np.zeros((2, 3)))]])
def test_rle__no_mask_and_empty_mask(rles: list[RLE]) -> None:
    assert decode_masks(rles, 2, 3).shape == (len(rles), 2, 3)
    assert not decode_masks(rles, 2, 3).any()


def test_rle__refuses_another_size() -> None:
    with pytest.raises(ValueError, match=r"mask of size \[2, 3\] for an image of \[3, 2\]"):
        decode_masks([encode_mask(np.ones((2, 3)))], 3, 2)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=40)))
def test_run_lengths_of__as_pycocotools_codes_them(masks: NDArray[np.bool_]) -> None:
    for mask, rle in zip(masks, encode_masks(masks), strict=True):
        flat = np.concatenate([[False], mask.T.ravel()])  # runs begin outside
        changes = np.flatnonzero(np.diff(flat.astype(np.int8)))
        expected = np.diff(np.concatenate([[0], changes, [mask.size]]))
        assert [run for run in run_lengths_of(rle["counts"]) if run] == [run for run in expected if run]
        check_rle(rle["counts"], *mask.shape)


@given(st.text(st.characters(codec="utf-8"), max_size=30), st.integers(1, 50), st.integers(1, 50))
def test_check_rle__what_it_lets_pass_is_a_mask(counts: str, height: int, width: int) -> None:
    try:
        check_rle(counts, height, width)
    except ValueError:
        return
    decode_masks([{"size": [height, width], "counts": counts}], height, width)
