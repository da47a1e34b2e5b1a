"""Test-time augmentation of detectors that find their own boxes: what is seen, mapped back, merged and kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from stages.core.detectors.inference import detect
from stages.core.detectors.spec import DetectorSpec, DetrSpec, Kind
from stages.core.detectors.tta import detect_in_views, resized
from stages.core.detectors.two_stage.faster_rcnn import Detector, build_detector
from stages.core.errors import EnvironmentFault

SPEC = DetectorSpec(
    backbone="resnet10t", out_strides=(8, 16), freeze_through_stride=8, fpn_channels=16, anchor_sizes=(16, 32),
    test_short_side=64, max_size=96, rpn_pre_nms_top_n=50, box_batch_size_per_image=16, fc_dim=32, mask_channels=8,
    score_thresh=0.0, detections_per_image=8,
)  # fmt: skip


class Scripted:
    """A detector that answers by the short side it is shown, in the frame of the (maybe mirrored) image."""

    def __init__(self, answers: dict[int, list[list[float]]], spec: DetectorSpec | DetrSpec = SPEC) -> None:
        self.answers, self.spec = answers, spec
        self.transform = GeneralizedRCNNTransform(spec.test_short_side, spec.max_size, [0.0], [1.0])
        self.seen: list[tuple[int, int, bool]] = []

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        size = self.transform.min_size[0]
        mirrored = bool(images[0][0, 0, -1] == 1)  # the test image is lit in its top left corner
        self.seen.append((size, self.transform.max_size, mirrored))
        rows = torch.tensor(self.answers.get(size, [])).reshape(-1, 6)
        return [{"boxes": rows[:, :4].clone(), "scores": rows[:, 4], "labels": rows[:, 5].long()}]


def lit() -> Tensor:
    image = torch.zeros(3, 50, 100)
    image[:, 0, 0] = 1
    return image


def found(model: Any, *sizes: int) -> list[list[float]]:
    merged = detect_in_views(model, lit(), sizes, "cpu")
    labels = merged.classes[:, None] + 1.0
    return torch.cat([merged.boxes_xyxy, merged.scores[:, None], labels], dim=1).tolist()


def test_detect_in_views__every_size_plain_and_mirrored_and_longer_as_it_is_higher() -> None:
    model = Scripted({})
    assert found(model, 32, 128, 128) == []
    limits = {32: 96, 64: 96, 128: 192}
    assert model.seen == [(size, limit, flip) for size, limit in limits.items() for flip in (False, True)]
    assert (model.transform.min_size, model.transform.max_size) == ((64,), 96)


def test_detect_in_views__mirrored_boxes_come_back_and_are_merged_by_class() -> None:
    # Seen plain and mirrored, a box of the left is at 10..30 and at 70..90: two places once it is mapped back.
    off_centre, centred = [10.0, 5, 30, 25, 0.9, 1], [40.0, 10, 60, 30, 0.5, 1]
    model = Scripted({64: [off_centre], 80: [centred], 96: [[40.0, 10, 60, 31, 0.75, 2]]})
    assert found(model, 80, 96) == [
        [10, 5, 30, 25, pytest.approx(0.9), 1],
        [70, 5, 90, 25, pytest.approx(0.9), 1],
        [40, 10, 60, 31, 0.75, 2],  # another class does not suppress
        [40, 10, 60, 30, 0.5, 1],  # once, though four views see it
    ]


def test_detect_in_views__keeps_the_best_of_all_views() -> None:
    rows = [[20.0 * i, 0, 20.0 * i + 10, 20, 0.1 * (i + 1), 1] for i in range(5)]
    model = Scripted({64: rows}, SPEC.model_copy(update={"detections_per_image": 3}))
    assert [row[4] for row in found(model)] == pytest.approx([0.5, 0.5, 0.4])


@pytest.mark.parametrize(("own", "left"), [(1.0, 1), (0.7, 2)])
def test_detect_in_views__set_detectors_are_suppressed_across_views_alone(own: float, left: int) -> None:
    near = {64: [[40.0, 10, 60, 30, 0.9, 1]], 80: [[40.0, 10, 60, 23, 0.8, 1]]}  # IoU .65
    spec = DetrSpec(test_short_side=64, max_size=96, nms_thresh=own)
    assert len(found(Scripted(near, spec), 80)) == left


def test_detect_in_views__views_too_large_for_memory_are_left_out() -> None:
    model = Scripted({32: [[0.0, 0, 10, 10, 0.5, 1]], 64: [[20.0, 0, 30, 10, 0.5, 1]]})
    limit = 96

    def limited(images: list[Tensor]) -> list[dict[str, Tensor]]:
        if model.transform.min_size[0] >= limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(images)

    class Limited(Scripted):
        __call__ = staticmethod(limited)

    small = Limited({})
    small.transform = model.transform
    assert len(found(small, 32, 96, 128)) == 4
    assert [size for size, _, _ in model.seen] == [32, 32, 64, 64]
    assert model.transform.min_size == (64,)
    limit = 1
    with pytest.raises(EnvironmentFault, match="memory cannot hold an image of 64 pixels"):
        found(small, 32)


def test_resized__comes_back_after_an_error() -> None:
    model: Any = Scripted({})
    with pytest.raises(ZeroDivisionError), resized(model, 200):
        raise ZeroDivisionError
    assert (model.transform.min_size, model.transform.max_size) == ((64,), 96)


def real(kind: Kind) -> Detector:
    torch.manual_seed(3)
    model = build_detector(SPEC.model_copy(update={"kind": kind}), ("cat", "dog"), pretrained=False)
    model.eval()
    return model


@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn"])
def test_detect__mirrored_image_mirrored_detections(kind: Kind) -> None:
    """Mirrored views make detection blind to left and right, which the plain view is not."""
    model, pixels = real(kind), np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    one = detect(model, pixels, view_sizes=(48, 64))
    other = detect(model, np.ascontiguousarray(pixels[:, ::-1]), view_sizes=(48, 64))
    assert len(one) == len(other) == 8
    mirrored = other.boxes_xyxy[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [70, 0, 70, 0]
    order = np.lexsort((one.boxes_xyxy[:, 0], -one.scores))
    back = np.lexsort((mirrored[:, 0], -other.scores))
    np.testing.assert_allclose(one.scores[order], other.scores[back], atol=1e-6)
    np.testing.assert_allclose(one.boxes_xyxy[order], mirrored[back], atol=1e-3)
    plain = detect(model, pixels)
    assert not np.allclose(plain.boxes_xyxy, one.boxes_xyxy)
    assert (one.masks is None) == (kind == "faster-rcnn")
    if one.masks is not None:
        assert len(one.masks) == 8
