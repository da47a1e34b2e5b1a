"""Proposals from crops: geometry, the edge rule, repeats across crops, masks, and one encoder call per layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.ops.boxes import pairwise_iou
from stages.core.segmenters.sam_checkpoints import NANO_FILE, load_nano
from stages.core.segmenters.sam_nano import build_sam_nano
from stages.core.segmenters.sam_segmenter import SamSegmenter
from stages.core.structures.rle import decode_masks
from stages.propose.candidates import Candidates
from stages.propose.config import ProposeConfig
from stages.propose.cropping import (
    Crop,
    image_crops,
    layer_points_per_side,
    merge_crops,
    uncropped,
    whole_in_crop,
)
from stages.propose.proposer import Proposer
from tests.propose_builders import OPEN, PEAKS, boxes_of
from tests.segmenter_builders import picture, random_sam

CROPPED = OPEN.model_copy(
    update={"crop_n_layers": 1, "crop_edge_tolerance_px": 1.0, "crop_n_points_downscale_factor": 1}
)


def candidates(boxes: list[list[float]], source: int = 1) -> Candidates:
    count = len(boxes)
    ones = torch.ones(count)
    return Candidates(
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), predicted_iou=ones, stability=ones,
        prompt=torch.arange(count), mask_index=torch.zeros(count, dtype=torch.int8),
        source=torch.full((count,), source, dtype=torch.int8),
        class_index=torch.full((count,), -1, dtype=torch.int32), peak_score=ones,
    )  # fmt: skip


def test_image_crops__image_first_then_layers_that_cover_it() -> None:
    crops = image_crops(100, 160, ProposeConfig(crop_n_layers=2, crop_overlap_ratio=0.2))
    assert crops[0] == Crop(0, 0, 160, 100, 0)
    assert [crop.layer for crop in crops] == [0] + [1] * 4 + [2] * 16
    # (160 + 20) / 2 by (100 + 20) / 2, side by side with an overlap of 20 pixels.
    assert {(c.left, c.top, c.right, c.bottom) for c in crops if c.layer == 1} == {
        (0, 0, 90, 60), (70, 0, 160, 60), (0, 40, 90, 100), (70, 40, 160, 100)
    }  # fmt: skip
    for layer in (1, 2):
        seen = np.zeros((100, 160), dtype=bool)
        for crop in crops:
            if crop.layer == layer:
                seen[crop.top : crop.bottom, crop.left : crop.right] = True
        assert seen.all()


def test_image_crops__none_by_default_and_none_of_a_line() -> None:
    assert image_crops(40, 60, ProposeConfig()) == [Crop(0, 0, 60, 40, 0)]
    assert len(image_crops(1, 60, ProposeConfig(crop_n_layers=1))) == 1


@pytest.mark.parametrize(("factor", "sides"), [(1, [10, 10, 10]), (2, [10, 5, 2])])
def test_layer_points_per_side__fewer_points_in_deeper_layers(factor: int, sides: list[int]) -> None:
    config = ProposeConfig(points_per_side=10, crop_n_points_downscale_factor=factor)
    assert [layer_points_per_side(layer, config) for layer in range(3)] == sides


@pytest.mark.parametrize(
    ("box", "whole"),
    [
        pytest.param([10, 10, 30, 30], True, id="inside"),
        pytest.param([0, 10, 30, 30], True, id="at the image's left edge"),
        pytest.param([10, 10, 60, 30], False, id="at the crop's inner right edge"),
        pytest.param([10, 10, 57.5, 30], False, id="near the inner edge"),
        pytest.param([10, 10, 56.5, 30], True, id="just far enough"),
        pytest.param([0, 0, 60, 40], False, id="the whole crop"),
    ],
)
def test_whole_in_crop__inner_edges_cut_boxes_off(box: list[float], whole: bool) -> None:
    crop = Crop(0, 0, 60, 40, 1)
    assert whole_in_crop(torch.tensor([box]), crop, 80, 100, 3.0).tolist() == [whole]


def test_whole_in_crop__every_box_of_the_image_is_whole() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 80], [5, 5, 99, 79]])
    assert whole_in_crop(boxes, Crop(0, 0, 100, 80, 0), 80, 100, 20.0).all()


def test_uncropped__moves_to_the_image() -> None:
    moved = uncropped(candidates([[1, 2, 5, 6]]), Crop(40, 30, 100, 80, 1))
    assert moved.boxes_xyxy.tolist() == [[41, 32, 45, 36]]


def test_merge_crops__smaller_crops_win_and_take_over_sources() -> None:
    image, small = Crop(0, 0, 100, 100, 0), Crop(0, 0, 60, 60, 1)
    parts = [
        (image, candidates([[0, 0, 50, 50], [60, 60, 90, 90]], 2)),
        (small, candidates([[0, 0, 50, 48]], 1)),
    ]
    merged = merge_crops(parts, 0.7)
    assert merged.boxes_xyxy.tolist() == [[60, 60, 90, 90], [0, 0, 50, 48]]
    assert merged.source.tolist() == [2, 3]


def test_merge_crops__keeps_repeats_within_a_crop_and_everything_when_off() -> None:
    image, small = Crop(0, 0, 100, 100, 0), Crop(0, 0, 60, 60, 1)
    twice = candidates([[0, 0, 50, 50], [0, 0, 50, 49]])
    assert len(merge_crops([(image, candidates([])), (small, twice)], 0.7)) == 2
    assert len(merge_crops([(image, twice), (small, twice)], 1.0)) == 4
    assert len(merge_crops([(image, twice), (small, twice)], 0.7)) == 2


@pytest.fixture(scope="module")
def nano() -> SamSegmenter:
    return SamSegmenter("sam-nano", load_nano(NANO_FILE))


def squares() -> NDArray[np.uint8]:
    """Small bright squares on a dark ground, 120 x 160 pixels."""
    image = np.full((120, 160, 3), 40, dtype=np.uint8)
    for index, (top, left) in enumerate(((12, 14), (20, 120), (80, 30), (86, 124), (56, 76))):
        image[top : top + 10, left : left + 12] = ((220, 60, 40), (40, 200, 60), (60, 80, 220))[index % 3]
    return image


def test_propose__crops_add_boxes_and_change_none_of_the_image(nano: SamSegmenter) -> None:
    plain = boxes_of(Proposer(nano, OPEN).propose(squares(), PEAKS))
    config = CROPPED.model_copy(update={"crop_nms_thresh": 1.0})
    cropped = boxes_of(Proposer(nano, config).propose(squares(), PEAKS))
    assert len(cropped) > len(plain)
    np.testing.assert_array_equal(cropped[: len(plain)], plain)
    assert (cropped[:, :2] >= 0).all()
    assert (cropped[:, 2] <= 160).all()
    assert (cropped[:, 3] <= 120).all()


def test_propose__crops_are_determined_by_the_image(nano: SamSegmenter) -> None:
    first, again = (Proposer(nano, CROPPED).propose(squares(), PEAKS) for _ in range(2))
    for name, values in first.columns.items():
        np.testing.assert_array_equal(values, again.columns[name])


def test_propose__image_and_first_layer_share_an_encoder_call(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = SamSegmenter("tiny", random_sam())
    counts: list[int] = []
    encode = segmenter.sam.image_encoder.forward

    def counted(images_B3HW: Tensor) -> Any:
        counts.append(len(images_B3HW))
        return encode(images_B3HW)

    monkeypatch.setattr(segmenter.sam.image_encoder, "forward", counted)
    Proposer(segmenter, CROPPED).propose(picture(), PEAKS)
    assert counts == [5]


def test_propose__masks_of_crops_lie_on_the_image(nano: SamSegmenter) -> None:
    config = CROPPED.model_copy(update={"save_masks": True, "crop_nms_thresh": 1.0})
    rows = Proposer(nano, config).propose(squares(), PEAKS)
    rles: list[Any] = [{"size": [120, 160], "counts": rle.tobytes().decode()} for rle in rows.pools["rle"]]
    masks = decode_masks(rles, 120, 160) > 0
    drawn = np.array([_box_of(mask) for mask in masks], dtype=np.float32)
    np.testing.assert_array_equal(drawn, boxes_of(rows))


def _box_of(mask_HW: NDArray[np.bool_]) -> list[int]:
    rows, columns = np.nonzero(mask_HW)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_propose__second_pass_within_crops(nano: SamSegmenter) -> None:
    config = CROPPED.model_copy(update={"refine_top_k": 8, "union_nms_thresh": 0.9, "max_proposals": 30})
    rows = Proposer(nano, config).propose(squares(), PEAKS)
    boxes = torch.from_numpy(boxes_of(rows))
    assert 0 < len(boxes) <= 30
    iou = pairwise_iou(boxes, boxes) - torch.eye(len(boxes))
    assert float(iou.max()) <= 0.9


def test_encode_batch__equals_encoding_one_by_one() -> None:
    segmenter = SamSegmenter("tiny", build_sam_nano(32, 64))
    images = [picture(), picture(20, 64), picture(64, 30)]
    for image, encoded in zip(images, segmenter.encode_batch(images), strict=True):
        alone = segmenter.encode(image)
        assert (encoded.height, encoded.width, encoded.input_height) == (
            alone.height,
            alone.width,
            alone.input_height,
        )
        torch.testing.assert_close(encoded.embedding_1CHW, alone.embedding_1CHW, rtol=1e-4, atol=1e-5)
