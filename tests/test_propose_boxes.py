"""Boxes and stability of masks, read off low-resolution logits, against masks drawn at full size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.core.segmenters.sam_nano import build_sam_nano
from stages.core.segmenters.sam_segmenter import SamSegmenter
from stages.propose.logits.interpolation import LogitFrame
from stages.propose.logits.mask_boxes import drawn_boxes, mask_boxes
from stages.propose.logits.mask_quality import settled_stability, stability_scores, usable


def smooth_logits(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 6, 6, generator=generator) * 4 - 1
    return F.interpolate(coarse, (size, size), mode="bicubic")[:, 0]


@pytest.mark.parametrize(
    ("height", "width"), [(375, 500), (500, 333), (256, 256), (61, 47), (40, 900), (700, 900)]
)
@pytest.mark.parametrize("grid", [8, 16])  # a frame of twice or four times as many pixels as logits
def test_mask_boxes__those_of_the_drawn_masks(height: int, width: int, grid: int) -> None:
    segmenter = SamSegmenter("tiny", build_sam_nano(32, 128))
    encoded = segmenter.encode(np.zeros((height, width, 3), dtype=np.uint8))
    logits = smooth_logits(40, 512 // grid, seed=height)
    # Specks of a single cell, which interpolation weakens or loses between pixels.
    specks = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) > 0.998
    logits = torch.where(specks & (logits < 0), -0.3 * logits, logits)
    frame = LogitFrame(height, width, *encoded.logit_extent(logits), encoded.frame_size)
    full = segmenter.upscale(logits, encoded)
    exact = drawn_boxes(full)
    for i, mask in enumerate(full > 0):
        ys, xs = torch.nonzero(mask, as_tuple=True)
        if len(xs):
            assert exact[i].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    found = mask_boxes(logits, frame)
    # Rounding may decide over a pixel whose logit is nearly zero.
    assert (found == exact).float().mean() >= 0.99
    drawn = torch.cat([piece for _, piece in frame.full_size(logits)])
    torch.testing.assert_close(drawn, full, atol=1e-4, rtol=1e-4)


def test_mask_boxes__straight_to_the_image() -> None:
    """Without a frame in between, as some segmenters interpolate."""
    logits = smooth_logits(20, 32, seed=3)
    full = F.interpolate(logits[:, None], (75, 141), mode="bilinear")[:, 0]
    assert torch.equal(mask_boxes(logits, LogitFrame(75, 141, 32.0, 32.0)), drawn_boxes(full))


def test_mask_boxes__autocast_changes_nothing() -> None:
    logits = smooth_logits(30, 64, seed=9)
    frame = LogitFrame(90, 120, 48.0, 64.0, 128)
    expected, drawn = mask_boxes(logits, frame), torch.cat([full for _, full in frame.full_size(logits)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mask_boxes(logits, frame), expected)
        assert torch.equal(torch.cat([full for _, full in frame.full_size(logits)]), drawn)


def test_settled_stability__on_the_side_of_the_drawn_mask() -> None:
    segmenter = SamSegmenter("tiny", build_sam_nano(32, 128))
    encoded = segmenter.encode(np.zeros((90, 120, 3), dtype=np.uint8))
    logits = smooth_logits(200, 64, seed=5)
    frame = LogitFrame(90, 120, *encoded.logit_extent(logits), encoded.frame_size)
    exact = stability_scores(segmenter.upscale(logits, encoded), 1.0)
    for threshold in (0.2, 0.3, 0.4):
        found = settled_stability(logits, frame, 1.0, torch.full((200,), threshold))
        assert torch.equal(found >= threshold, exact >= threshold)
    rough = stability_scores(frame.crop(logits), 1.0)
    assert torch.equal(settled_stability(logits, frame, 1.0, torch.zeros(200)), rough)


def test_mask_boxes__known_crossing() -> None:
    # Along x the logits are 1 at cell 2 and -3 at cell 3: zero a quarter of the way, at 2.5 + 0.25 cells.
    logits = torch.full((1, 4, 4), -3.0)
    logits[0, 1:3, 1:3] = 1.0
    frame = LogitFrame(400, 400, 4.0, 4.0)
    assert mask_boxes(logits, frame).tolist() == [[125, 125, 275, 275]]


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_mask_boxes__empty_and_full(value: float) -> None:
    frame = LogitFrame(30, 50, 8.0, 8.0)
    box = mask_boxes(torch.full((1, 8, 8), value), frame)
    assert box.tolist() == ([[0, 0, 50, 30]] if value > 0 else [[0, 0, 0, 0]])


def test_mask_boxes__mask_in_the_padding_is_empty() -> None:
    logits = torch.full((1, 16, 16), -1.0)
    logits[:, 12:, :] = 1.0  # below the image
    frame = LogitFrame(50, 100, 8.0, 16.0)
    assert mask_boxes(logits, frame).tolist() == [[0, 0, 0, 0]]


def test_stability_scores__shares_of_the_looser_mask() -> None:
    logits = torch.tensor([[[2.0, 0.5], [-0.5, -2.0]], [[-2.0] * 2] * 2])
    scores = stability_scores(logits, 1.0)
    assert scores[0].item() == pytest.approx(1 / 3)
    assert torch.isnan(scores[1])


def test_usable__sides_area_and_empty() -> None:
    boxes = torch.tensor([[0.0, 0, 5, 5], [0, 0, 1, 9], [3, 3, 3, 9], [0, 0, 2, 2]])
    assert usable(boxes, 2.0, 0.0).tolist() == [True, False, False, True]
    assert usable(boxes, 0.0, 9.0).tolist() == [True, True, False, False]
