"""Detector builders: equal to torchvision without the hook, changed by it, rebuilt from their file alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign

from stages.core.config import load_recipe
from stages.core.detectors.checkpoints import DetectorFile
from stages.core.detectors.inference import detect
from stages.core.detectors.spec import DetectorSpec, Kind
from stages.core.detectors.two_stage.faster_rcnn import build_detector, save_detector
from stages.core.detectors.two_stage.roi_heads import SMOOTH_L1_BETA, TopKMatcher, roi_losses
from stages.core.errors import ConfigError, MissingInputError, SchemaError
from stages.core.runtime.image_generators import image_streams
from stages.retrain.config import RetrainConfig
from stages.wsis.config import WsisConfig
from tests.two_stage_builders import CLASSES, TINY, batch, tiny


def test_build_detector__losses_equal_torchvision_without_hook() -> None:
    torch.manual_seed(0)
    ours = build_detector(tiny(box_loss="smooth-l1"), CLASSES, pretrained=False)
    theirs = FasterRCNN(
        ours.backbone, min_size=64, max_size=64, image_mean=ours.transform.image_mean,
        image_std=ours.transform.image_std, rpn_anchor_generator=ours.rpn.anchor_generator,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2), box_head=ours.roi_heads.box_head,
        box_predictor=ours.roi_heads.box_predictor, rpn_head=ours.rpn.head, rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=25, box_batch_size_per_image=16, _skip_resize=True,
    )  # fmt: skip
    theirs.roi_heads.box_roi_pool = ours.roi_heads.box_roi_pool  # its constructor accepts only its own class
    for image, target in zip(*batch(), strict=True):
        torch.manual_seed(1)
        mine = ours.train()([image], [target])
        torch.manual_seed(1)
        reference = theirs.train()([image], [target])
        assert set(mine) == set(reference)
        for name in mine:
            torch.testing.assert_close(mine[name], reference[name], msg=name)


@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn"])
@pytest.mark.parametrize("heads", ["v1", "v2"])
def test_detector__loss_of_a_batch_is_the_mean_of_its_images(kind: Kind, heads: str) -> None:
    torch.manual_seed(0)
    model = build_detector(tiny(kind=kind, heads=heads), CLASSES, pretrained=False).train()
    images = [torch.rand(3, 40, 60), torch.rand(3, 64, 33), torch.rand(3, 60, 60)]
    targets = [
        {
            "boxes": torch.tensor([[4.0, 4, 20, 20], [1, 9, 30, 38]])[: 1 + row % 2],
            "labels": torch.tensor([1, 2])[: 1 + row % 2],
            "masks": torch.ones((1 + row % 2, *image.shape[-2:]), dtype=torch.uint8),
        }
        for row, image in enumerate(images)
    ]
    with image_streams([7, 8, 9]):
        whole = model(images, targets)
    alone = []
    for row in range(3):
        with image_streams([7 + row]):
            alone.append(model([images[row]], [targets[row]]))
    for name in whole:
        mean = torch.stack([losses[name] for losses in alone]).mean()
        torch.testing.assert_close(whole[name], mean, msg=name, rtol=1e-5, atol=1e-6)


def test_roi_losses__smooth_l1_sums_to_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, deltas = torch.randn(9, 3, generator=generator), torch.randn(9, 12, generator=generator)
    targets = torch.randn(9, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1, 1, 0, 2, 0])
    cls, reg = roi_losses(logits, deltas, labels, targets, "smooth-l1")
    expected_cls, expected_reg = fastrcnn_loss(logits, deltas, [labels], [targets])
    torch.testing.assert_close(cls.mean(), expected_cls)
    torch.testing.assert_close(reg.sum() / 9, expected_reg)
    assert pytest.approx(1 / 9) == SMOOTH_L1_BETA


def test_roi_losses__l1_by_hand_and_background_ignored() -> None:
    deltas = torch.zeros(2, 12)
    deltas[0, 4:8] = torch.tensor([1.0, 0.0, -2.0, 0.5])  # class 1's deltas
    targets = torch.tensor([[0.0, 0, 0, 0], [float("inf"), 0, 0, float("nan")]])
    _, reg = roi_losses(torch.zeros(2, 3), deltas, torch.tensor([1, 0]), targets, "l1")
    assert reg.tolist() == [3.5, 0.0]


def test_roi_weights__zero_weights_silence_foreground_but_keep_denominator() -> None:
    torch.manual_seed(0)
    model = build_detector(tiny(), CLASSES, pretrained=False).train()
    images, targets = batch()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def drop_foreground(cls: Tensor, reg: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((cls, reg, foreground))
        return (~foreground).float(), (~foreground).float()

    model.roi_heads.roi_weights = drop_foreground
    losses = model(images, targets)
    cls, reg, foreground = seen[0]
    assert foreground.any()
    assert not cls.requires_grad
    assert (reg[~foreground] == 0).all()
    assert losses["loss_box_reg"].item() == 0.0
    torch.testing.assert_close(losses["loss_classifier"], cls[~foreground].sum() / len(cls))


@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn"])
def test_build_detector__frozen_layers_stay_and_others_learn(kind: Kind) -> None:
    torch.manual_seed(0)
    model = build_detector(tiny(kind), CLASSES, pretrained=False).train()
    images, targets = batch(masks=kind == "mask-rcnn")
    losses = model(images, targets)
    assert ("loss_mask" in losses) == (kind == "mask-rcnn")
    sum(losses.values(), torch.zeros(())).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    stem = [name for name in gradients if ".conv1." in name and "layer" not in name]
    assert stem
    assert all(gradients[name] is None for name in stem)
    late = [name for name in gradients if "layer3" in name and "conv" in name]
    assert late
    assert all(gradients[name] is not None for name in late)
    learnt = [parameter for parameter in model.pretrained_backbone.parameters() if parameter.requires_grad]
    assert all(parameter.ndim == 4 for parameter in learnt)  # no shift of a frozen normalisation


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"anchor_sizes": (8, 16, 32, 64)}, "anchor"), ({"freeze_through_stride": 4}, "stride 4")],
)
def test_build_detector__settings_that_do_not_fit(changes: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        build_detector(TINY.model_copy(update=changes), CLASSES, pretrained=False)


@pytest.mark.parametrize(("loss", "expected"), [("l1", 0.5), ("smooth-l1", 0.5 - 1 / 36)])
def test_region_proposals__box_loss_by_hand(loss: str, expected: float) -> None:
    rpn = build_detector(tiny(rpn_box_loss=loss), CLASSES, pretrained=False).rpn
    deltas = torch.tensor(
        [[1.0, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9]]
    )  # a positive, a negative, one not sampled
    labels = torch.tensor([1.0, 0, -1])
    objectness, box = rpn.compute_loss(torch.zeros(3, 1), deltas, [labels], [torch.zeros(3, 4)])
    assert float(box) == pytest.approx(expected)
    assert float(objectness) == pytest.approx(math.log(2))


def test_build_detector__predictors_start_as_published() -> None:
    torch.manual_seed(0)
    predictor = build_detector(
        tiny(predictor_init="normal"), CLASSES, pretrained=False
    ).roi_heads.box_predictor
    assert float(predictor.cls_score.weight.detach().std()) == pytest.approx(0.01, rel=0.3)
    assert float(predictor.bbox_pred.weight.detach().std()) == pytest.approx(0.001, rel=0.3)
    assert not predictor.cls_score.bias.any()


def test_build_detector__extra_anchor_size_adds_a_level() -> None:
    model = build_detector(tiny(anchor_sizes=(8, 16, 32)), CLASSES, pretrained=False)
    assert len(model.backbone(torch.zeros(1, 3, 64, 64))) == 3


@pytest.mark.parametrize(
    ("kind", "library"),
    [("faster-rcnn", fasterrcnn_resnet50_fpn_v2), ("mask-rcnn", maskrcnn_resnet50_fpn_v2)],
)
def test_build_detector__v2_heads_have_the_parameters_of_torchvisions(
    kind: Kind, library: Callable[..., nn.Module]
) -> None:
    theirs = library(weights=None, weights_backbone=None, num_classes=21)
    paper = RetrainConfig(**load_recipe("paper")["retrain"]).detector_spec()
    spec = paper.model_copy(update={"kind": kind, "backbone": "resnet50-fpn-v2", "heads": "v2"})
    assert isinstance(spec, DetectorSpec)
    ours = build_detector(spec, [str(i) for i in range(20)], pretrained=False)

    def shapes(model: Any) -> Counter[tuple[int, ...]]:
        parts = [model.backbone.fpn, model.rpn, model.roi_heads]
        return Counter(tuple(p.shape) for part in parts for p in part.parameters())

    assert shapes(ours) == shapes(theirs)
    assert shapes(
        build_detector(spec.model_copy(update={"heads": "v1"}), "a" * 20, pretrained=False)
    ) != shapes(theirs)


@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn"])
@pytest.mark.parametrize("heads", ["v1", "v2"])
def test_save_detector__round_trip_gives_same_detections(tmp_path: Path, kind: Kind, heads: str) -> None:
    torch.manual_seed(0)
    spec = tiny(kind, heads=heads)
    model = build_detector(spec, CLASSES, pretrained=False).eval()
    path = tmp_path / "detector.safetensors"
    save_detector(path, model, spec, CLASSES)
    file = DetectorFile.open(path)
    again = file.model()
    pixels = (torch.rand(50, 40, 3) * 255).byte().numpy()
    first, second = detect(model, pixels), detect(again, pixels)
    assert len(first) > 0
    assert (first.boxes_xyxy == second.boxes_xyxy).all()
    assert (first.scores == second.scores).all()
    assert first.masks == second.masks
    assert (first.masks is not None) == (kind == "mask-rcnn")
    assert first.boxes_xyxy[:, 2].max() <= 40
    assert set(first.classes.tolist()) <= {0, 1}
    assert (again.classes, file.classes, file.kind, file.spec) == (CLASSES, CLASSES, kind, spec)


@pytest.mark.parametrize(
    ("kind", "classes", "word"),
    [("faster-rcnn", ("circle", "star"), "star"), ("mask-rcnn", CLASSES, "faster-rcnn")],
)
def test_detector_file__wrong_checkpoint(
    tmp_path: Path, kind: Kind, classes: tuple[str, ...], word: str
) -> None:
    path = tmp_path / "detector.safetensors"
    save_detector(path, build_detector(tiny(), CLASSES, pretrained=False), tiny(), CLASSES)
    with pytest.raises(SchemaError, match=word):
        DetectorFile.open(path).check(classes, (kind,))


def test_detector_file__missing_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        DetectorFile.open(tmp_path / "none.safetensors")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not a checkpoint")
    with pytest.raises(SchemaError):
        DetectorFile.open(bad)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [0, -1, -1, 1, -1]),  # only the best of each box
        (2, [0, 0, -1, 1, -1]),  # the second of box 1 is below the threshold
        (9, [0, 0, 0, 1, -1]),  # more than there are: every good one
    ],
)
def test_topk_matcher__by_hand(k: int, expected: list[int]) -> None:
    iou = torch.tensor([[0.9, 0.8, 0.6, 0.1, 0.0], [0.0, 0.1, 0.2, 0.7, 0.3]])
    assert TopKMatcher(k)(iou).tolist() == expected


def test_paper_settings__valid_and_of_the_published_shape() -> None:
    recipe = load_recipe("paper")
    retrain, wsis = RetrainConfig(**recipe["retrain"]), WsisConfig(**recipe["wsis"])
    assert (retrain.lr, retrain.batch_size, retrain.tau_cls, retrain.tau_reg) == (0.02, 16, 4.0, 4.0)
    assert wsis.mask_choice == "single"
    spec = retrain.detector_spec()
    assert isinstance(spec, DetectorSpec)
    assert len(spec.anchor_sizes) == len(spec.out_strides) + 1  # P6 is pooled
