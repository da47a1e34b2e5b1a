"""Box geometry: hand-worked values, empties, round trips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.core.ops.boxes import (
    box_area,
    clip_boxes,
    decode_deltas,
    encode_deltas,
    pairwise_containment,
    pairwise_iou,
)


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def random_boxes(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 80
    size = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 40 + 1
    return torch.cat((corner, corner + size), dim=1)


@pytest.mark.parametrize(
    ("box", "area"),
    [
        ((0, 0, 4, 3), 12.0),  # half-open: no +1
        ((1.5, 2, 2, 4), 1.0),
        ((3, 3, 3, 9), 0.0),  # no width
        ((5, 5, 2, 1), 0.0),  # inverted twice: still empty, not (-3)(-4)
    ],
)
def test_box_area__cases(box: tuple[float, float, float, float], area: float) -> None:
    assert box_area(boxes(box)).item() == area


@pytest.mark.parametrize(
    ("a", "b", "iou", "contained"),
    [
        ((0, 0, 4, 4), (2, 0, 6, 4), 8 / 24, 0.5),
        ((0, 0, 4, 4), (4, 0, 8, 4), 0.0, 0.0),  # touching edges share no pixel
        ((1, 1, 3, 3), (0, 0, 4, 4), 4 / 16, 1.0),  # inside
        ((0, 0, 4, 4), (1, 1, 3, 3), 4 / 16, 0.25),  # containment is not symmetric
        ((2, 2, 2, 2), (0, 0, 4, 4), 0.0, 0.0),  # an empty box
        ((2, 2, 2, 2), (2, 2, 2, 2), 0.0, 0.0),  # two empty boxes: 0, not nan
    ],
)
def test_pairwise_iou_and_containment__cases(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float], iou: float, contained: float
) -> None:
    assert pairwise_iou(boxes(a), boxes(b)).item() == pytest.approx(iou)
    assert pairwise_containment(boxes(a), boxes(b)).item() == pytest.approx(contained)


def test_pairwise_iou__shapes_without_boxes() -> None:
    assert pairwise_iou(boxes(), random_boxes(3, 0)).shape == (0, 3)
    assert pairwise_iou(random_boxes(3, 0), boxes()).shape == (3, 0)


def test_pairwise_iou__counts_pixels() -> None:
    # On integer boxes the IoU is a ratio of pixel counts.
    a, b = random_boxes(6, 1).round(), random_boxes(5, 2).round()
    grid = torch.zeros(11, 140, 140, dtype=torch.bool)
    for i, (x1, y1, x2, y2) in enumerate(torch.cat((a, b)).int().tolist()):
        grid[i, y1:y2, x1:x2] = True
    inter = (grid[:6, None] & grid[None, 6:]).sum((2, 3)).double()
    union = (grid[:6, None] | grid[None, 6:]).sum((2, 3)).double()
    torch.testing.assert_close(pairwise_iou(a, b), inter / union)


def test_clip_boxes__outside_becomes_empty_and_input_is_kept() -> None:
    given = boxes((-5, 2, 30, 12), (50, 50, 60, 60))
    clipped = clip_boxes(given, height=10, width=20)
    assert clipped.tolist() == [[0, 2, 20, 10], [20, 10, 20, 10]]
    assert box_area(clipped)[1] == 0
    assert given[0, 0] == -5


def test_encode_deltas__hand_case() -> None:
    # RoI 10x20 centred (5, 10); target 20x20 centred (15, 15): dx 10/10, dy 5/20, log 2, log 1.
    deltas = encode_deltas(boxes((0, 0, 10, 20)), boxes((5, 5, 25, 25)), (10, 10, 5, 5))
    torch.testing.assert_close(deltas, boxes((10.0, 2.5, 5 * 0.6931471805599453, 0.0)))


def test_decode_deltas__inverts_encode_for_each_class() -> None:
    rois, first, second = random_boxes(8, 4), random_boxes(8, 5), random_boxes(8, 6)
    weights = (10.0, 10.0, 5.0, 5.0)
    deltas = torch.cat((encode_deltas(rois, first, weights), encode_deltas(rois, second, weights)), dim=1)
    torch.testing.assert_close(decode_deltas(rois, deltas, weights), torch.cat((first, second), dim=1))


def test_decode_deltas__caps_the_size() -> None:
    decoded = decode_deltas(boxes((0, 0, 16, 16)), boxes((0, 0, 100, 0)))
    assert decoded[0, 2] - decoded[0, 0] == pytest.approx(1000.0)


def test_decode_deltas__no_rois() -> None:
    assert decode_deltas(boxes(), torch.zeros(0, 12)).shape == (0, 12)
