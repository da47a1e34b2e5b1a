"""The detector's parts: shapes, true freezing, VGG16-d8, losses of a batch, detections, views and averages."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.core.backbones import vgg
from stages.core.detectors import tta
from stages.core.detectors.tta import View, mirror_boxes, views
from stages.core.errors import ConfigError, EnvironmentFault
from stages.core.ops.padding import pad_to_multiple
from stages.core.runtime.device import autocast
from stages.core.runtime.image_generators import image_streams
from stages.wsod import inference
from stages.wsod.batches import render, shift_lighting, unrender_boxes
from stages.wsod.config import WsodConfig
from stages.wsod.criterion import Bags, wsod_losses
from stages.wsod.detection import ScoredProposals, detect, score_proposals, weigh
from stages.wsod.fitting import build_adversary, make_optimizer
from stages.wsod.model import detector
from stages.wsod.model.detector import ProposalOutputs, WsodDetector
from stages.wsod.proposals import Proposals, clean
from stages.wsod.tta import average

SMALL = {"fc_dim": 16, "fused_channels": 8, "pooler_resolution": 3, "dropout": 0.0, "pretrained": False}


def small(**changes: object) -> WsodConfig:
    return WsodConfig.model_validate(SMALL | changes)


def batch() -> tuple[Tensor, Bags]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    boxes = []
    for count in (5, 12):
        low = torch.rand(count, 2, generator=generator) * 30
        boxes.append(torch.cat((low, low + 8 + torch.rand(count, 2, generator=generator) * 25), dim=1))
    return images, Bags(boxes, [torch.tensor([0]), torch.tensor([0, 2])])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"method": "wsddn"}, {"image"}),
        ({"method": "oicr"}, {"image", "refine1", "refine2", "refine3"}),
        (
            {
                "method": "oicr",
                "oicr": {"miner": "top1"},
                "num_refinements": 1,
                "refine_loss_weights": (1.0,),
                "ignore_iou_thresh": 0.1,
            },
            {"image", "refine1"},
        ),
        (
            {
                "method": "mist",
                "dropblock": True,
                "dropblock_max_fraction": 0.9,
                "background_class": True,
                "bce_reduction": "mean",
                "pooler_type": "roi_pool",
            },
            {"image", "refine1", "refine2", "refine3", "box1", "box2", "box3"},
        ),
    ],
)
def test_wsod_losses__every_method_trains_all_its_heads(changes: dict[str, object], names: set[str]) -> None:
    config = small(**changes)
    torch.manual_seed(0)
    model = WsodDetector(config, 3).train()
    images, bags = batch()
    losses = wsod_losses(model(images, bags.boxes_xyxy), bags, config)
    assert {name for name in losses if not name.startswith("_")} == names
    torch.autograd.backward(sum(losses[name] for name in sorted(names)))  # type: ignore[arg-type]
    untouched = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    # The last rows of a class that no image shows may get no gradient, whole tensors must.
    assert untouched == []


@pytest.mark.parametrize("method", ["wsddn", "oicr", "mist"])
def test_detector__loss_of_a_batch_is_the_mean_of_its_images(method: str) -> None:
    config = small(method=method, dropout=0.5, pooler_type="roi_pool" if method == "oicr" else "roi_align")
    torch.manual_seed(0)
    model = WsodDetector(config, 3).train()
    sizes, counts = ((64, 64), (32, 96), (64, 64)), (5, 12, 1)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    low = [torch.rand(count, 2) * 16 for count in counts]
    boxes = [torch.cat((corner, corner + 8 + torch.rand_like(corner) * 8), dim=1) for corner in low]
    tags = [torch.tensor(present) for present in ([0], [0, 2], [1])]

    def losses(rows: list[int]) -> dict[str, Tensor]:
        bags = Bags([boxes[row] for row in rows], [tags[row] for row in rows])
        with image_streams([90 + row for row in rows]):
            outputs = model([images[row] for row in rows], bags.boxes_xyxy)
        return {k: v for k, v in wsod_losses(outputs, bags, config).items() if not k.startswith("_")}

    whole, alone = losses([0, 1, 2]), [losses([row]) for row in range(3)]
    for name, value in whole.items():
        mean = torch.stack([one[name] for one in alone]).mean()
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(losses([0])["image"], alone[1]["image"])


def test_detector__frozen_stages_stay_and_the_rest_moves() -> None:
    config = small(freeze_through_stride=4, optimizer="sgd", lr=0.1)
    torch.manual_seed(0)
    model = WsodDetector(config, 3).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, config)
    images, bags = batch()
    losses = wsod_losses(model(images, bags.boxes_xyxy), bags, config)
    torch.autograd.backward(losses["image"])
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert not any("conv_stem" in name or "blocks.0." in name or "blocks.1." in name for name in moved)
    assert any("blocks.2." in name for name in moved)
    assert any("blocks.4." in name for name in moved)
    assert all(
        p.ndim == 4 for p in model.backbone.parameters() if p.requires_grad
    )  # no frozen shift is learnt


@pytest.mark.parametrize("pool", ["roi_align", "roi_pool"])
@pytest.mark.parametrize("method", ["wsddn", "oicr", "mist"])
def test_detector__scores_and_boxes_of_mixed_precision_are_float32(method: str, pool: str) -> None:
    config = small(method=method, pooler_type=pool)
    torch.manual_seed(0)
    model = WsodDetector(config, 3).eval()
    images, bags = batch()
    with torch.no_grad():
        plain = model(images, bags.boxes_xyxy)
        with autocast("cpu", "bf16"):
            mixed = model(images, bags.boxes_xyxy)
    for name in ("cls_logits_NC", "det_logits_NC", "refine_logits", "deltas"):
        wanted, found = getattr(plain, name), getattr(mixed, name)
        for one, other in zip(*([x] if isinstance(x, Tensor) else x for x in (wanted, found)), strict=True):
            assert other.dtype == torch.float32, name
            assert torch.allclose(other, one, rtol=0.05, atol=0.02 * float(one.abs().max())), name
    for scored in score_proposals(mixed, bags.boxes_xyxy, 3):
        assert scored.scores_NC.dtype == scored.boxes_NC4.dtype == torch.float32
    losses = wsod_losses(mixed, bags, config)
    assert all(value.dtype == torch.float32 for value in losses.values())


@pytest.mark.parametrize("pool", ["roi_align", "roi_pool"])
def test_detector__pooling_in_mixed_precision_is_that_of_float_boxes(pool: str) -> None:
    model = WsodDetector(small(pooler_type=pool), 3)
    torch.manual_seed(0)
    feats = torch.randn(1, 8, 100, 168).bfloat16()
    low = torch.rand(50, 2) * torch.tensor([1200.0, 700.0])
    boxes = [torch.cat((low, low + 20 + torch.rand(50, 2) * 60), dim=1)]
    with autocast("cpu", "bf16"):
        found = model.pooled(feats, boxes)
    torch.testing.assert_close(found.float(), model.pooled(feats.float(), boxes), rtol=0.005, atol=0.005)


def test_detector__roi_pool_gets_the_last_pixel_of_a_box() -> None:
    model = WsodDetector(small(pooler_type="roi_pool"), 3)
    feats, side = torch.randn(1, 8, 20, 20), 6.5 * model.stride  # ends in the seventh cell, not in the eighth
    (found,) = model.pooled(feats, [torch.tensor([[0.0, 0, side, side]])])
    assert torch.equal(found.amax(dim=(0, 1)), feats[0, :, :7, :7].amax(dim=(1, 2)))


def test_detector__pads_with_the_mean_colour() -> None:
    model = WsodDetector(small(), 3)
    padded = model._normalised(torch.full((3, 40, 50), 7, dtype=torch.uint8))
    assert padded.shape == (3, 64, 64)
    assert (padded[:, :40, :50] < -0.5).all()
    assert not padded[:, 40:].any()
    assert not padded[:, :, 50:].any()


def test_build_adversary__decay_and_rates_are_the_published() -> None:
    config = small(dropblock=True, dropblock_form="two_step", method="mist", lr=1e-5, dropblock_lr_factor=3.0)
    model = WsodDetector(config, 3)
    adversary = build_adversary(model, config)
    assert adversary is not None
    of = {id(p): (g["lr"], g["weight_decay"]) for g in adversary.optimizer.param_groups for p in g["params"]}
    assert model.dropblock is not None
    rates = {name: of[id(p)] for name, p in model.dropblock.named_parameters()}
    assert rates["shortcut.weight"] == rates["residual.1.weight"] == (pytest.approx(3e-5), 5e-4)
    assert rates["residual.1.bias"] == rates["residual.4.bias"] == (pytest.approx(6e-5), 0.0)


@pytest.mark.parametrize("frozen_bn", [True, False])
def test_detector__a_backbone_for_one_size_is_refused(frozen_bn: bool) -> None:
    config = small(
        backbone="vit_tiny_patch16_224", out_strides=(16,), freeze_through_stride=0, freeze_bn=frozen_bn
    )
    with pytest.raises(ConfigError, match="images of one size only"):
        WsodDetector(config, 3)


def test_build_optimizer__published_groups() -> None:
    config = small(lr=1e-5, refine_lr_factor=10.0, backbone_lr_factor=0.5)
    model = WsodDetector(config, 3)
    groups = make_optimizer(model, config).param_groups
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert rate[id(model.two_stream.cls_stream.weight)] == (1e-5, 5e-4)
    assert rate[id(model.two_stream.cls_stream.bias)] == (2e-5, 0.0)
    refine = model.refinement.classifiers[0]
    assert rate[id(refine.weight)] == (pytest.approx(1e-4), 5e-4)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(rate) == len(trainable)


def test_vgg16_d8__stride_freezing_and_fc_order() -> None:
    backbone, _ = vgg.build_vgg16_d8(pretrained=False)
    (feats,) = backbone(torch.zeros(1, 3, 40, 56))
    assert feats.shape == (1, 512, 5, 7)
    assert feats.min() >= 0
    (signed,) = vgg.build_vgg16_d8(pretrained=False, final_relu=False)[0](torch.randn(1, 3, 40, 56))
    assert signed.min() < 0
    backbone.freeze_through(4)
    frozen = [name for name, p in backbone.body.named_parameters() if not p.requires_grad]
    assert len(frozen) == 8  # weights and biases of conv1_1, conv1_2, conv2_1, conv2_2
    # The three layers of conv5 see as far as they did behind pool 4, which is left out.
    convs = [layer for layer in backbone.body.modules() if isinstance(layer, nn.Conv2d)]
    assert [conv.dilation for conv in convs] == [(1, 1)] * 10 + [(2, 2)] * 3
    cell = torch.zeros(1, 512, 9, 9)
    cell[..., 4, 4] = 1.0
    ones = torch.ones_like(convs[-1].weight)
    seen = nn.functional.conv2d(cell, ones, None, convs[-1].stride, convs[-1].padding, convs[-1].dilation)
    assert set(torch.nonzero(seen[0, 0])[:, 0].tolist()) == {2, 4, 6}
    # fc6 sees the same numbers whether bins come channel-first, as stored, or channel-last, as pooled.
    weight, bins = torch.randn(4, 512 * 49), torch.randn(3, 512, 7, 7)
    rows = bins.permute(0, 2, 3, 1).flatten(1)
    assert torch.allclose(bins.flatten(1) @ weight.T, rows @ vgg.fc6_for_rows(weight).T, atol=1e-3)


@pytest.mark.parametrize("relu", [True, False])
def test_detector__final_relu_is_a_setting(relu: bool) -> None:
    torch.manual_seed(0)
    config = small(
        backbone="vgg16-d8", out_strides=(8,), fused_channels=0, freeze_through_stride=4, final_relu=relu
    )
    with torch.no_grad():
        feats = WsodDetector(config, 3).features(batch()[0])
    assert (feats.min() >= 0) == relu


def test_score_proposals__mean_of_branches_without_background() -> None:
    logits = [torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[3.0, 0.0, 0.0]])]
    outputs = ProposalOutputs(torch.zeros(1, 2), torch.zeros(1, 2), logits, [])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    (scored,) = score_proposals(outputs, [boxes], 2)
    expected = torch.stack([torch.softmax(row, dim=1) for row in logits]).mean(dim=0)[:, 1:]
    assert torch.allclose(scored.scores_NC, expected)
    assert torch.equal(scored.boxes_NC4, boxes[:, None].expand(-1, 2, -1))


def test_score_proposals__deltas_move_each_class_by_its_own_column() -> None:
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 2, 0] = 10.0  # class 1 moves right by its width; column 0 is background
    outputs = ProposalOutputs(torch.zeros(1, 2), torch.zeros(1, 2), [torch.zeros(1, 3)], [deltas])
    (scored,) = score_proposals(outputs, [torch.tensor([[0.0, 0.0, 10.0, 20.0]])], 2)
    assert scored.boxes_NC4[0].tolist() == [[0.0, 0.0, 10.0, 20.0], [10.0, 0.0, 20.0, 20.0]]


def test_weigh__quality_decides_between_equal_scores_and_power_zero_changes_nothing() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 3, 3]])[:, None].expand(-1, 2, -1)
    scored = ScoredProposals(torch.tensor([[0.8, 0.1], [0.8, 0.2]]), boxes)
    quality = torch.tensor([0.9, 0.5])
    assert torch.allclose(weigh(scored, quality, 1.0).scores_NC, torch.tensor([[0.72, 0.09], [0.40, 0.10]]))
    assert torch.allclose(weigh(scored, quality, 2.0).scores_NC[:, 0], torch.tensor([0.648, 0.2]))
    assert torch.equal(weigh(scored, quality, 0.0).scores_NC, scored.scores_NC)


def test_detect__clips_drops_duplicates_per_class_and_caps() -> None:
    boxes = torch.tensor([[-5.0, 0, 50, 50], [0, 0, 50, 48], [60, 60, 90, 90]])
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.0], [0.3, 0.7]])
    scored = ScoredProposals(scores, boxes[:, None].expand(-1, 2, -1))
    found = detect(scored, 80, 80)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.3, 0.1])
    assert found.classes.tolist() == [0, 1, 0, 1]
    assert found.boxes_xyxy[0].tolist() == [0, 0, 50, 50]
    assert found.boxes_xyxy[1].tolist() == [60, 60, 80, 80]
    assert len(detect(scored, 80, 80, detections_per_image=2)) == 2


def test_views__plain_by_default() -> None:
    assert views(64, (48, 64), enabled=False) == (View(64),)
    assert len(views(64, (48, 64), enabled=True)) == 4


@pytest.mark.parametrize("view", [View(37), View(80, flip=True), View(20, flip=True)])
def test_render__boxes_come_back(view: View) -> None:
    pixels = torch.randint(0, 256, (3, 30, 41), dtype=torch.uint8)
    boxes = torch.tensor([[1.0, 2.0, 20.0, 29.0], [0.0, 0.0, 41.0, 30.0]])
    image, moved = render(pixels, boxes, view, max_size=120)
    assert min(image.shape[-2:]) == view.size
    assert torch.allclose(unrender_boxes(moved, view, image, (30, 41)), boxes, atol=1e-4)


def test_shift_lighting__along_a_component() -> None:
    image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    moved = shift_lighting(image, np.array([0.1, 0.0, 0.0]))
    # 255 x 0.1 x 0.2175 x (-.5675, -.5808, -.5836): the first component is nearly grey
    assert moved[:, 0, 0].tolist() == [97, 97, 97]
    moved = shift_lighting(image, np.array([0.0, 2.0, 0.0]))
    assert moved[:, 1, 1].tolist() == [107, 100, 93]  # red against blue
    assert shift_lighting(torch.zeros(3, 1, 1, dtype=torch.uint8), np.array([9.0, 0, 0])).sum() == 0


def test_render__a_mirrored_box_covers_the_same_pixels() -> None:
    pixels = torch.zeros(3, 10, 20, dtype=torch.uint8)
    pixels[:, 2:5, 3:9] = 255
    image, boxes = render(pixels, torch.tensor([[3.0, 2.0, 9.0, 5.0]]), View(10, flip=True), 2000)
    x1, y1, x2, y2 = (int(v) for v in boxes[0])
    assert image[:, y1:y2, x1:x2].min() == 255
    assert int((image[0] == 255).sum()) == (x2 - x1) * (y2 - y1)


def test_average__mean_box_by_box() -> None:
    one = ScoredProposals(torch.tensor([[0.2]]), torch.zeros(1, 1, 4))
    two = ScoredProposals(torch.tensor([[0.6]]), torch.full((1, 1, 4), 4.0))
    mean = average([one, two])
    assert mean.scores_NC.item() == pytest.approx(0.4)
    assert mean.boxes_NC4.flatten().tolist() == [2.0] * 4
    assert mirror_boxes(torch.tensor([1.0, 2, 3, 4]), 10.0).tolist() == [7.0, 2.0, 9.0, 4.0]


def sure(boxes: Tensor) -> Proposals:
    return Proposals(boxes.numpy(), np.ones(len(boxes), np.float32))


@pytest.mark.parametrize(
    ("refused", "left"),
    [
        (96, [32, 64]),
        # The plain view does not fit: nothing is left for larger ones either, but the smaller one is.
        (64, [32]),
    ],
)
def test_detect_image__views_larger_than_memory_are_left_out(
    refused: int,
    left: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("weaksam"), "propagate", True)
    config = small(train_short_sides=(32, 96), test_short_side=64, tta=True)
    torch.manual_seed(0)
    model = WsodDetector(config, 3).eval()
    tried: list[int] = []
    plain = inference._score_view

    def limited(model: Any, pixels: Any, boxes: Any, view: View, *rest: Any) -> ScoredProposals:
        tried.append(view.size)
        if view.size >= refused:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return plain(model, pixels, boxes, view, *rest)

    monkeypatch.setattr(inference, "_score_view", limited)
    tta._warn_of_left_out_views.cache_clear()
    pixels = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    boxes = torch.tensor([[2.0, 2, 30, 40], [10, 5, 60, 44]])
    with caplog.at_level("WARNING", "weaksam"):
        found, again = (
            inference.detect_image(model, pixels, sure(boxes), config, "cpu", "fp32") for _ in range(2)
        )
    # A record counts once, however many handlers other tests left behind.
    warnings = {id(record) for record in caplog.records if "memory cannot hold" in record.getMessage()}
    assert len(warnings) == 1
    # Each image is tried by itself, and nothing is tried after the first view that does not fit.
    assert tried == 2 * [*(size for size in left for _ in ("plain", "mirrored")), refused]
    assert np.array_equal(found.scores, again.scores)
    fitting = small(train_short_sides=(32,), test_short_side=left[-1], tta=True)
    monkeypatch.setattr(inference, "_score_view", plain)
    expected = inference.detect_image(model, pixels, sure(boxes), fitting, "cpu", "fp32")
    assert np.allclose(found.scores, expected.scores, atol=1e-6)


def test_detect_image__nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> ScoredProposals:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(inference, "_score_view", refuse)
    config = small(test_short_side=64)
    model, pixels = WsodDetector(config, 3).eval(), torch.zeros(3, 48, 64, dtype=torch.uint8)
    with pytest.raises(EnvironmentFault, match="test_short_side"):
        inference.detect_image(model, pixels, sure(torch.tensor([[2.0, 2, 30, 40]])), config, "cpu", "fp32")


def test_detect_image__mirrored_views_find_the_same_boxes() -> None:
    # Without regression every box is a proposal, in all views; were one left mirrored, the mean would move.
    config = small(
        method="oicr",
        train_short_sides=(32, 48),
        test_short_side=40,
        tta=True,
        quality_power=0.0,
        nms_thresh=1.0,
    )
    torch.manual_seed(0)
    model = WsodDetector(config, 3).eval()
    pixels = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    boxes = torch.tensor([[2.0, 2, 30, 40], [10, 5, 60, 44], [1, 20, 12, 47]])
    found = inference.detect_image(model, pixels, sure(boxes), config, "cpu", "fp32")
    assert len(found) == 9
    for box in found.boxes_xyxy:
        assert min(np.abs(boxes.numpy() - box).max(axis=1)) < 1e-3


@pytest.mark.parametrize(("power", "factor"), [(0.0, 1.0), (1.0, 0.5), (2.0, 0.25)])
def test_detect_image__scores_are_weighed_with_quality(power: float, factor: float) -> None:
    config = small(method="oicr", test_short_side=64)
    torch.manual_seed(0)
    model, pixels = WsodDetector(config, 3).eval(), torch.zeros(3, 48, 64, dtype=torch.uint8)
    boxes = np.array([[2, 2, 30, 40]], np.float32)
    scores = []
    for quality, own in ((1.0, config), (0.5, config.model_copy(update={"quality_power": power}))):
        proposals = Proposals(boxes, np.full(1, quality, np.float32))
        scores.append(inference.detect_image(model, pixels, proposals, own, "cpu", "fp32").scores)
    assert scores[1] == pytest.approx(factor * scores[0])


@pytest.mark.parametrize(("hidden", "loaded"), [(16, True), (24, False)])
def test_detector__fully_connected_layers_start_as_vggs_where_they_fit(
    hidden: int, loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"0.weight": torch.randn(16, 512 * 49), "0.bias": torch.randn(16)}
    state |= {"3.weight": torch.randn(16, 16), "3.bias": torch.randn(16)}
    plain = detector._build_backbone
    monkeypatch.setattr(detector, "_build_backbone", lambda *arguments: (plain(*arguments)[0], state))
    model = WsodDetector(small(fused_channels=512, pooler_resolution=7, fc_dim=hidden), 3).eval()
    first, second = model.neck[0], model.neck[3]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert torch.equal(first.bias, state["0.bias"]) == loaded
    assert (second.weight.shape == (16, 16) and torch.equal(second.weight, state["3.weight"])) == loaded
    if loaded:
        # VGG flattens channel by channel, pooling here returns bins first.
        bins = torch.randn(2, 512, 7, 7)
        expected = nn.functional.linear(bins.flatten(1), state["0.weight"], state["0.bias"])
        torch.testing.assert_close(first(bins.permute(0, 2, 3, 1).flatten(1)), expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(second.bias, state["3.bias"])


def test_pad_to_multiple__right_and_bottom() -> None:
    for size, padded in (((10, 33), (32, 64)), ((64, 32), (64, 32))):
        image = torch.ones(3, *size, dtype=torch.uint8)
        assert pad_to_multiple(image).shape == (3, *padded)
        assert torch.equal(pad_to_multiple(image)[:, : size[0], : size[1]], image)
        assert pad_to_multiple(image).sum() == image.sum()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"min_side_px": 4.0}, [0, 2, 4]),  # too small: 1; same whole pixels as 2: 3
        ({"min_side_px": 1.0}, [0, 1, 2, 4, 5]),
        ({"min_side_px": 4.0, "dedup_grid_px": 64.0}, [0, 4]),
        ({"min_side_px": 4.0, "max_proposals": 2}, [2, 4]),
    ],
)
def test_clean__small_equal_and_surplus_boxes_go(settings: dict[str, float], expected: list[int]) -> None:
    boxes = np.array(
        [
            [0, 0, 10, 10],
            [5, 5, 8, 20],
            [1, 1, 12, 12.2],
            [1, 1, 12, 12.4],
            [-20, 0, 60, 200],
            [99, 0, 140, 50],
        ]
    )
    quality = np.array([0.1, 0.2, 0.9, 0.9, 0.5, 0.9])
    assert clean(boxes, quality, (100, 100), **settings).tolist() == expected  # type: ignore[arg-type]


def test_clean__boxes_that_are_not_finite_go() -> None:
    inf, nan = np.inf, np.nan
    boxes = np.array([[0, 0, inf, 50], [-inf, 0, 20, 20], [nan, 0, 20, 20], [0, 0, 20, 20]])
    assert clean(boxes, np.ones(4), (100, 100), 4.0).tolist() == [3]
