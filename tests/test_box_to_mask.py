"""Boxes to masks with a segmenter that draws what the test tells it to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.ops.mask_boxes import mask_to_box
from stages.core.segmenters.box_to_mask import (
    FROM_BOX,
    FROM_PROMPT,
    FROM_SECOND_TRY,
    Choice,
    MaskRule,
    box_fit,
    clean_mask,
    filled_box,
    masks_of_boxes,
)
from stages.core.structures.rle import decode_masks, encode_masks

SIZE = 32
PIXELS = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)


@dataclass
class Decoded:
    low_res_logits: Tensor
    predicted_iou: Tensor


@dataclass
class DrawingSegmenter:
    """Masks are half the box (single), or nothing / the box / a dot (three), as the test wishes.

    `single` maps the left edge of a box to the share of its height that the single mask covers.
    """

    single: dict[int, float] = field(default_factory=dict)
    three_is_empty: bool = False
    encoded: int = 0
    mask_threshold: float = 0.0
    batches: list[int] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)

    def encode(self, pixels_HW3: NDArray[np.uint8]) -> str:
        self.encoded += 1
        return "encoding"

    def decode(
        self, encoded: str, points: Tensor | None, labels: Tensor | None, boxes: Tensor, *, multimask: bool
    ) -> Decoded:
        assert points is None
        self.batches.append(len(boxes))
        logits = torch.full((len(boxes), 3 if multimask else 1, SIZE, SIZE), -1.0)
        for row, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
            if multimask and not self.three_is_empty:
                logits[row, 1, y1:y2, x1:x2] = 1
                logits[row, 2, y1, x1] = 1
            if not multimask:
                share = self.single.get(x1, 0.5)
                logits[row, 0, y1 : y1 + round(share * (y2 - y1)), x1:x2] = 1
        ious = torch.tensor([[0.9, 0.5, 0.7]]) if multimask else torch.tensor([[0.8]])
        return Decoded(logits, ious.expand(len(boxes), -1))

    def upscale(self, logits: Tensor, encoded: str) -> Tensor:
        self.drawn.append(len(logits))
        return logits


def make(segmenter: Any, boxes: list[list[float]], rule: MaskRule | None = None) -> list[Any]:
    return masks_of_boxes(
        segmenter, PIXELS, np.array(boxes, dtype=np.float32).reshape(-1, 4), rule or MaskRule()
    )


def test_masks_of_boxes__one_encoding_and_batched_boxes() -> None:
    segmenter = DrawingSegmenter()
    rule = MaskRule(choice="single", prompts_per_batch=2)
    found = make(segmenter, [[i, 2, i + 8, 18] for i in range(5)], rule)
    assert segmenter.encoded == 1
    assert segmenter.batches == [2, 2, 1]
    assert [one.origin for one in found] == [FROM_PROMPT] * 5
    assert mask_to_box(found[3].mask_HW).tolist() == [3, 2, 11, 10]


@pytest.mark.parametrize(
    ("pixels", "drawn"),
    [
        (1, [1] * 5),  # never less than a box
        (2 * 3 * SIZE**2, [2, 2, 1]),
        (2**25, [5]),
    ],
)
def test_masks_of_boxes__few_are_drawn_at_once_on_large_images(
    pixels: int, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = [[float(i), 2, i + 8, 18] for i in range(5)]
    wanted = make(DrawingSegmenter(), boxes)
    monkeypatch.setattr("stages.core.segmenters.box_to_mask.PIXELS_AT_ONCE", pixels)
    segmenter = DrawingSegmenter()
    found = make(segmenter, boxes)
    assert (segmenter.batches, segmenter.drawn) == ([5], drawn)
    assert all(np.array_equal(a.mask_HW, b.mask_HW) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("rule", [MaskRule(), MaskRule(choice="single")])
def test_masks_of_boxes__no_boxes_no_encoding(rule: MaskRule) -> None:
    segmenter = DrawingSegmenter()
    assert make(segmenter, [], rule) == []
    assert segmenter.encoded == 0


def test_masks_of_boxes__empty_single_mask_gets_second_try_then_box() -> None:
    boxes: list[list[float]] = [[1, 1, 9, 9], [12, 4, 28, 28]]
    rule = MaskRule(choice="single")
    # By predicted IoU the three masks are: nothing, a dot (1 of 384 pixels, too small), the box.
    second = make(DrawingSegmenter(single={12: 0.0}), boxes, rule)
    assert [one.origin for one in second] == [FROM_PROMPT, FROM_SECOND_TRY]
    assert mask_to_box(second[1].mask_HW).tolist() == [12, 4, 28, 28]
    last = make(DrawingSegmenter(single={12: 0.0}, three_is_empty=True), boxes, rule)
    assert [one.origin for one in last] == [FROM_PROMPT, FROM_BOX]
    assert (last[1].mask_HW == filled_box(np.array(boxes[1]), SIZE, SIZE)).all()


@pytest.mark.parametrize(
    ("choice", "pixels", "origin"),
    [
        ("best-of-three", 1, FROM_SECOND_TRY),  # highest predicted IoU is empty, the next is a dot of 1 / 36
        ("best-fit", 36, FROM_PROMPT),  # the box fits best although its predicted IoU is lowest
    ],
)
def test_masks_of_boxes__choice_among_three(choice: Choice, pixels: int, origin: int) -> None:
    segmenter = DrawingSegmenter()
    found = make(segmenter, [[2.0, 2, 8, 8]], MaskRule(choice=choice))
    assert (found[0].mask_HW.sum(), found[0].origin) == (pixels, origin)
    assert segmenter.batches == [1]


def test_masks_of_boxes__three_bad_masks_fill_the_box_without_asking_again() -> None:
    segmenter = DrawingSegmenter(three_is_empty=True)
    found = make(segmenter, [[2.0, 2, 8, 8]], MaskRule(choice="best-of-three"))
    assert (found[0].mask_HW.sum(), found[0].origin) == (36, FROM_BOX)
    assert segmenter.batches == [1]


@pytest.mark.parametrize(
    ("box", "expected"),
    [([4.0, 2, 8, 6], 1.0), ([4.0, 2, 8, 10], 0.5), ([8.0, 2, 12, 6], 0.0), ([6.0, 2, 10, 6], 1 / 3)],
)
def test_box_fit__iou_of_tight_box(box: list[float], expected: float) -> None:
    mask = filled_box(np.array([4.0, 2, 8, 6]), 16, 16)
    assert box_fit(mask, np.array(box)) == pytest.approx(expected)
    assert box_fit(np.zeros((16, 16), np.bool_), np.array(box)) == 0.0


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (MaskRule(box_margin_fraction=0.0), 12),  # clipped to columns 4..8; the larger of two pieces (3 x 4)
        (MaskRule(box_margin_fraction=0.0, largest_component=False), 20),
        (MaskRule(box_margin_fraction=0.25), 15),  # one more column on each side; the mask begins at column 4
    ],
)
def test_clean_mask__clips_and_keeps_largest_piece(rule: MaskRule, expected: int) -> None:
    mask = np.zeros((16, 16), dtype=np.bool_)
    mask[0:3, 4:16] = True
    mask[5:7, 4:16] = True
    assert clean_mask(mask, np.array([4.0, 0, 8, 8]), rule).sum() == expected


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([2.0, 3.0, 5.0, 7.0], [2, 3, 5, 7]),
        ([2.4, 3.6, 4.5, 6.1], [2, 3, 5, 7]),  # every pixel touched
        ([-5.0, -5.0, 50.0, 50.0], [0, 0, 16, 12]),
        ([40.0, 40.0, 50.0, 50.0], [15, 11, 16, 12]),  # outside: still one pixel
        ([3.0, 3.0, 3.0, 3.0], [3, 3, 4, 4]),  # empty: still one pixel
    ],
)
def test_filled_box__pixels(box: list[float], expected: list[int]) -> None:
    assert mask_to_box(filled_box(np.array(box), 12, 16)).tolist() == expected


def test_encode_masks__round_trip() -> None:
    generator = np.random.default_rng(0)
    masks = generator.random((4, 13, 17)) > 0.6
    masks[2] = False
    again = decode_masks(encode_masks(masks), 13, 17)
    assert (again.astype(bool) == masks).all()
    assert decode_masks([], 13, 17).shape == (0, 13, 17)
    with pytest.raises(ValueError, match="size"):
        decode_masks(encode_masks(masks), 17, 13)
