"""Pyramid pooling against torchvision's pooler, whose half-pixel convention is undone by shifting the boxes."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_align

from stages.core.detectors.two_stage.roi_pooling import PyramidRoIPool


def test_pyramid_roi_pool__every_box_from_its_level_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    features = {
        "0": torch.randn(2, 3, 64, 64, generator=generator),
        "1": torch.randn(2, 3, 32, 32, generator=generator),
        "pool": torch.randn(2, 3, 16, 16, generator=generator),
    }
    boxes = [
        torch.tensor([[0.0, 0, 240, 230], [10, 10, 40, 50], [3, 5, 200, 250]]),
        torch.tensor([[100.0, 30, 140, 60], [0, 0, 256, 256]]),
    ]
    pool = PyramidRoIPool((4, 8), 7)
    pooled = pool(features, boxes, [(256, 256)] * 2)
    levels = [pool.levels(b).tolist() for b in boxes]
    assert levels == [[1, 0, 1], [0, 1]]
    row = 0
    for image, image_boxes in enumerate(boxes):
        for box, level in zip(image_boxes, levels[image], strict=True):
            feats = features[str(level)][image : image + 1]
            expected = roi_align(feats, [box[None]], 7, 1 / pool.strides[level], 2, aligned=True)
            torch.testing.assert_close(pooled[row : row + 1], expected, atol=1e-4, rtol=1e-4)
            row += 1


@pytest.mark.parametrize("side", [10.0, 55.9, 56.1, 111.9, 112.1, 223.9, 224.1, 447.0, 900.0])
def test_pyramid_roi_pool__levels_equal_torchvision(side: float) -> None:
    strides = (4, 8, 16, 32)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    features = {str(i): torch.zeros(1, 1, 256 // s, 256 // s) for i, s in enumerate(strides)}
    box = torch.tensor([[0.0, 0.0, side, side]])
    theirs(features, [box], [(256, 256)])
    assert theirs.map_levels is not None
    assert PyramidRoIPool(strides, 7).levels(box).tolist() == theirs.map_levels([box]).tolist()


def test_pyramid_roi_pool__no_boxes() -> None:
    pooled = PyramidRoIPool((8,), 7)({"0": torch.zeros(1, 4, 8, 8)}, [torch.zeros(0, 4)], [(64, 64)])
    assert pooled.shape == (0, 4, 7, 7)
