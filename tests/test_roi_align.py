"""The embedding-bag RoIAlign against torchvision's operator: values, gradients, borders, empty batches."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align as reference

from stages.core.ops.roi_align import roi_align


@pytest.mark.parametrize("sampling", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_roi_align__matches_torchvision(sampling: int, size: int) -> None:
    generator = torch.Generator().manual_seed(size * 10 + sampling)
    feats = torch.randn(3, 5, 9, 13, generator=generator, dtype=torch.float64)
    boxes = []
    for count in (4, 0, 6):
        low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 120 - 25
        boxes.append(torch.cat((low, low + torch.rand(count, 2, generator=generator) * 90), dim=1))
    mine, theirs = feats.clone().requires_grad_(), feats.clone().requires_grad_()
    pooled = roi_align(mine, boxes, size, 8.0, sampling)
    expected = reference(theirs, boxes, size, 1 / 8, sampling, aligned=True)
    assert pooled.shape == (10, size, size, 5)
    assert torch.allclose(pooled.permute(0, 3, 1, 2), expected)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad((pooled.permute(0, 3, 1, 2) * weights).sum(), mine)
    (expected_slope,) = torch.autograd.grad((expected * weights).sum(), theirs)
    assert torch.allclose(slope, expected_slope)


def test_roi_align__no_boxes() -> None:
    assert roi_align(torch.zeros(1, 3, 4, 4), [torch.zeros(0, 4)], 7, 8.0).shape == (0, 7, 7, 3)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_roi_align__half_precision_does_not_move_the_boxes(precision: torch.dtype) -> None:
    # A staircase of 0 and 1 says where a box was sampled and is exact in eight bits.
    feats = (torch.arange(166) // 2 % 2).float()[None, None, None].expand(1, 1, 100, 166).contiguous()
    boxes = [torch.tensor([[1001.0, 100, 1060, 200], [645, 3, 677, 30], [203, 400, 231, 777]])]
    expected = roi_align(feats, boxes, 7, 8.0)
    found = roi_align(feats.to(precision), boxes, 7, 8.0)
    assert found.dtype == precision
    assert torch.allclose(found.float(), expected, atol=4e-3)
