"""Under autocast, boxes, anchors, prompts and maps stay in float32; what is drawn at random leaves GPUs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from stages.cam.building import build_classifier, map_rule
from stages.cam.config import CamConfig, HybridSettings
from stages.cam.maps import image_maps
from stages.core.datasets.catalog import open_split
from stages.core.detectors import dino
from stages.core.detectors.detr import build_detr
from stages.core.detectors.spec import DetectorSpec, DetrKind, DetrSpec, Kind
from stages.core.detectors.two_stage import roi_heads
from stages.core.detectors.two_stage.faster_rcnn import build_detector
from stages.core.ops.precision import deterministic_algorithms
from stages.core.ops.roi_align import roi_align
from stages.core.runtime.device import Precision
from stages.core.runtime.seeding import global_generators
from stages.core.segmenters.box_to_mask import masks_of_boxes
from stages.core.segmenters.sam_nano import build_sam_nano
from stages.core.segmenters.sam_segmenter import SamSegmenter
from stages.wsis import pseudo_masks
from stages.wsis.config import WsisConfig
from stages.wsis.pseudo_masks import MaskFactory
from tests.datasets_builders import make_voc
from tests.detector_builders import MASKED, BoxSegmenter, write_pgt
from tests.segmenter_builders import picture, shaken

CLASSES = ("circle", "square")
TWO_STAGE = DetectorSpec(
    backbone="resnet10t", out_strides=(8, 16), freeze_through_stride=8, fpn_channels=16, anchor_sizes=(16, 32),
    test_short_side=64, max_size=2000, rpn_pre_nms_top_n=50, box_batch_size_per_image=16, fc_dim=32, mask_channels=8,
    score_thresh=0.0, detections_per_image=5,
)  # fmt: skip
DETR = DetrSpec(
    backbone="resnet10t", out_strides=(8, 16), freeze_through_stride=8, d_model=32, num_heads=4, dim_feedforward=16,
    num_encoder_layers=1, num_decoder_layers=2, num_queries=9, num_denoising=6, test_short_side=64, max_size=2000,
    score_thresh=0.0, detections_per_image=6,
)  # fmt: skip
LONG = 1200
"""Pixels: wide enough for bf16, which has 8 bits, to move a box by several."""

pytestmark = pytest.mark.usefixtures("random_backbones")


def bf16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def wide_image() -> Tensor:
    return torch.rand(3, 64, LONG, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn"])
def test_two_stage__anchors_and_boxes(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_detector(TWO_STAGE.model_copy(update={"kind": kind}), CLASSES, pretrained=False).eval()
    decode, coded = BoxCoder.decode, []

    def recorded(coder: BoxCoder, deltas: Tensor, boxes: list[Tensor]) -> Tensor:
        found: Tensor = decode(coder, deltas, boxes)
        exact = decode(coder, deltas.double(), [own.double() for own in boxes])
        coded.append((torch.cat(boxes), found, exact))
        return found

    monkeypatch.setattr(BoxCoder, "decode", recorded)
    with torch.no_grad():
        with bf16():
            found = model([wide_image()])[0]
        model([wide_image()])
    (anchors, proposals, exact_proposals), (_, boxes, exact_boxes), (exact_anchors, _, _), _ = coded
    assert torch.equal(anchors, exact_anchors)
    assert float(anchors.max()) > LONG
    for ours, exact in ((proposals, exact_proposals), (boxes, exact_boxes)):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-3)
    assert all(value.dtype == torch.float32 for name, value in found.items() if name != "labels")


@pytest.mark.parametrize("kind", ["rt-detr", "deformable-detr"])
def test_detr__reference_points_and_boxes(kind: DetrKind) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = build_detr(DETR.model_copy(update={"kind": kind}), CLASSES).eval()
    decoder = model.network.model.decoder
    starts: list[Tensor] = []
    moves: list[list[Tensor]] = [[] for _ in decoder.bbox_embed]
    decoder.register_forward_pre_hook(
        lambda module, values, named: starts.append(named["reference_points"]), with_kwargs=True
    )
    for head, heard in zip(decoder.bbox_embed, moves, strict=True):
        torch.nn.init.normal_(head.layers[-1].weight, std=0.5)
        head.register_forward_hook(
            lambda module, values, output, to=heard: to.append(output.clone())
        )  # changed in place
    pixels = torch.rand(1, 3, 64, 1216, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), bf16():
        boxes = model.answers(pixels, torch.ones(1, 64, 1216), None).layers[-1].boxes_BQ4
    assert boxes.dtype == torch.float32
    places = starts[0].double() if kind == "rt-detr" else torch.special.logit(starts[0].double(), eps=1e-5)
    for own in moves:
        known = places.shape[-1]  # a point has no size yet
        step = own[0].double()
        reached = torch.cat([step[..., :known] + places, step[..., known:]], dim=-1).sigmoid()
        places = torch.special.logit(reached, eps=1e-5)
    torch.testing.assert_close(boxes.double() * LONG, reached * LONG, rtol=0, atol=1e-3)
    if kind == "rt-detr":
        anchors, _ = model.network.model.generate_anchors(((8, 152), (4, 76)), dtype=torch.bfloat16)
        assert anchors.dtype == torch.float32
        assert len(set(starts[0].flatten().tolist())) > 4 * 8, "starts are not on a coarse grid"


def test_dino__boxes_of_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = build_detr(DETR.model_copy(update={"kind": "dino"}), CLASSES).eval()
    for head in model.network.bbox_embed:
        torch.nn.init.normal_(head.layers[-1].weight, std=0.5)
    move, seen = dino._moved, []

    def recorded(boxes: Tensor, moves: Tensor) -> Tensor:
        seen.append((boxes, moves, move(boxes, moves)))
        return seen[-1][2]

    monkeypatch.setattr(dino, "_moved", recorded)
    pixels = torch.rand(1, 3, 64, 1216, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), bf16():
        model.answers(pixels, torch.ones(1, 64, 1216), None)
    assert len(seen) == 4
    for boxes, moves, found in seen:
        assert boxes.dtype == moves.dtype == torch.float32
        assert len(set(moves.flatten().tolist())) > 4 * 8, "not rounded to half precision before"
        exact = (torch.logit(boxes.double(), eps=1e-5) + moves.double()).sigmoid()
        torch.testing.assert_close(found.double() * LONG, exact * LONG, rtol=0, atol=1e-3)


def test_prompts__reach_the_decoder_where_they_are() -> None:
    segmenter = SamSegmenter("nano", shaken(build_sam_nano(32, 64)))
    heard: list[Tensor] = []
    segmenter.sam.prompt_encoder.register_forward_hook(lambda module, values, output: heard.append(output[0]))
    encoded = segmenter.encode(picture(40, 60))
    boxes = torch.tensor([[3.0, 5.0, 47.0, 33.0]])
    with bf16():
        segmenter.decode(encoded, None, None, boxes, multimask=True)
    segmenter.decode(encoded, None, None, boxes, multimask=True)
    assert torch.equal(heard[0], heard[1])


def test_image_maps__the_network_in_half_precision_the_maps_in_float32() -> None:
    config = CamConfig(hybrid=HybridSettings(embed_dim=32, num_heads=4, depth=2), pretrained=False)
    torch.manual_seed(0)
    model, pixels = build_classifier(config, 3, pretrained=False).eval(), picture(64, 96)
    exact, half = (image_maps(model, pixels, (0, 2), map_rule(config), "cpu", p) for p in ("fp32", "bf16"))
    assert half.cross is not None
    assert exact.cross is not None
    assert half.coarse.dtype == half.cross.dtype == np.float32
    np.testing.assert_allclose(half.cross, exact.cross, atol=0.1)
    assert not np.array_equal(half.cross, exact.cross)


def test_wsis__masks_in_the_precision_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_voc(tmp_path)
    split = open_split("tiny_train", tmp_path)
    monkeypatch.setattr("stages.core.segmenters.loading.load_segmenter", lambda *arguments: BoxSegmenter())
    seen: list[bool] = []

    def recorded(*arguments: Any) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return masks_of_boxes(*arguments)

    monkeypatch.setattr(pseudo_masks, "masks_of_boxes", recorded)
    pgt, config = write_pgt(tmp_path, split), WsisConfig.model_validate(MASKED)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        rows = MaskFactory(pgt, split, config, "cpu", precision)()
        rows(split.ids[0])
    assert seen == [False, True]


def test_global_generators__leave_those_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    before = torch.get_rng_state()
    with global_generators(3):
        first = torch.rand(2)
    with global_generators(3):
        assert torch.equal(torch.rand(2), first)
    assert not seeds
    assert torch.equal(torch.get_rng_state(), before)


def test_deterministic__no_form_whose_memory_grows_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Tensor:
        raise AssertionError("torchvision's operator was called")

    monkeypatch.setattr("stages.core.ops.roi_align.torchvision_roi_align", refuse)
    maps, boxes = torch.zeros(1, 3, 8, 8, device="meta"), torch.zeros(5, 4, device="meta")
    with deterministic_algorithms(True):
        assert roi_align(maps, [boxes], 7, 8.0).shape == (5, 7, 7, 3)
    with deterministic_algorithms(False), pytest.raises(AssertionError, match="torchvision's operator"):
        roi_align(maps, [boxes], 7, 8.0)


def test_deterministic__mask_targets_by_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def loss(logits: Tensor, *others: Any) -> Tensor:
        asked.append(torch.are_deterministic_algorithms_enabled())
        return logits.sum()

    monkeypatch.setattr(roi_heads, "maskrcnn_loss", loss)
    torch.manual_seed(0)
    model = build_detector(TWO_STAGE.model_copy(update={"kind": "mask-rcnn"}), CLASSES, pretrained=False)
    target = {
        "boxes": torch.tensor([[4.0, 4, 40, 36]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
    }
    with deterministic_algorithms(True):
        model.train()([torch.rand(3, 64, 64)], [target])
        assert torch.are_deterministic_algorithms_enabled()
    assert asked == [False]
