"""Mask2Former: the library's losses, the published rule of inference, and `wsis` with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.artifacts.coco_json import read_dataset, read_results
from stages.core.backbones.timm_backbones import build_backbone
from stages.core.detectors import mask2former
from stages.core.detectors.fitting import make_optimizer
from stages.core.detectors.mask2former import Mask2Former, build_mask2former, check_mask2former
from stages.core.detectors.settings import Augmentation
from stages.core.detectors.spec import Mask2FormerSpec
from stages.core.detectors.training_data import PseudoGroundTruthData
from stages.core.errors import ConfigError
from stages.core.spec import FailureLog
from stages.wsis.config import WsisConfig
from stages.wsis.stage import WsisStage
from tests.datasets_builders import HEIGHT, WIDTH
from tests.detector_builders import SHARED, context, run, write_pgt

pytest.importorskip("transformers")
CLASSES = ("cat", "dog", "owl")
SIZES: dict[str, Any] = {
    "d_model": 32, "num_heads": 4, "dim_feedforward": 16, "encoder_dim_feedforward": 16, "num_encoder_layers": 1,
    "num_decoder_layers": 2, "num_queries": 6, "num_points": 64,
}  # fmt: skip
TINY = Mask2FormerSpec(
    backbone="resnet10t", out_strides=(8, 16, 32), freeze_through_stride=8, test_short_side=64, max_size=96,
    score_thresh=0.0, detections_per_image=6, **SIZES,
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def random_backbone(*arguments: Any, **options: Any) -> Any:
        return build_backbone(*arguments, **options | {"pretrained": False})

    monkeypatch.setattr(mask2former, "build_backbone", random_backbone)


def tiny(**changes: object) -> Mask2Former:
    torch.manual_seed(0)
    return build_mask2former(TINY.model_copy(update=changes), CLASSES)


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of different sizes; the second mask of the first image is empty."""
    generator = torch.Generator().manual_seed(3)
    images = [torch.rand(3, 64, 64, generator=generator), torch.rand(3, 50, 90, generator=generator)]
    targets = []
    for image, labels in zip(images, ([1, 2], [3]), strict=True):
        masks = torch.zeros(len(labels), *image.shape[1:], dtype=torch.uint8)
        masks[0, 8:40, 10:50] = 1
        targets.append({"masks": masks, "labels": torch.tensor(labels)})
    return images, targets


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_losses__equal_the_librarys() -> None:
    model = tiny().train()
    images, targets = batch()
    mean, std = (
        torch.tensor(v).reshape(1, 3, 1, 1) for v in (model.transform.image_mean, model.transform.image_std)
    )
    pixels, masks = torch.zeros(2, 3, 64, 96), torch.zeros(2, 64, 96)
    for row, (image, target) in enumerate(zip(images, targets, strict=True)):
        height, width = image.shape[1:]
        pixels[row, :, :height, :width] = ((image - mean) / std)[0]
        masks[row, :height, :width] = target["masks"][0]
    torch.manual_seed(1)  # the points at which losses are taken
    theirs = model.network(
        pixel_values=pixels,
        mask_labels=[masks[:1], masks[1:]],
        class_labels=[torch.tensor([0]), torch.tensor([2])],
    )
    torch.manual_seed(1)
    ours = model(images, targets)
    assert list(ours) == ["loss_class", "loss_mask", "loss_dice"]
    torch.testing.assert_close(total(ours), theirs.loss.squeeze(), rtol=1e-5, atol=1e-5)


def test_forward__every_parameter_learns_and_tables_do_not_decay() -> None:
    model = tiny().train()
    total(model(*batch())).backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    optimizer = make_optimizer(
        model, WsisConfig(lr=1.0, lr_base_size=4, backbone_lr_factor=0.1, weight_decay=0.05)
    )
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == sum(p.requires_grad for p in model.parameters())
    assert {decay[id(table)] for table in model.embeddings} == {0.0}
    assert decay[id(model.network.class_predictor.weight)] == 0.05


def test_forward__a_batch_without_a_mask_has_the_same_losses() -> None:
    model = tiny().train()
    images, targets = batch()
    none = [{"masks": t["masks"] * 0, "labels": t["labels"]} for t in targets]
    losses = model(images, none)
    assert list(losses) == ["loss_class", "loss_mask", "loss_dice"]
    assert all(torch.isfinite(value) and value.requires_grad for value in losses.values())
    assert losses["loss_mask"] == losses["loss_dice"] == 0


def test_detections__score_is_class_probability_times_certainty_of_the_mask() -> None:
    model = tiny(detections_per_image=4).eval()
    logits = torch.full((3, 4), -9.0)
    logits[0, 1] = logits[2, 2] = 9.0
    logits[1, 0] = logits[1, 3] = 1.0  # the last column is no object
    masks = torch.full((3, 8, 12), -4.0)
    masks[0, 2:4, 2:6], masks[1, :, :] = 4.0, 2.0  # the third is empty
    found = model._detections(logits, masks, torch.zeros(1, 3, 64, 96), (64, 80), (128, 160))
    sure = 1 / (1 + math.exp(-2))
    assert found["labels"].tolist()[:2] == [2, 1]
    assert found["scores"][0] > found["scores"][1]
    assert float(found["scores"][1]) == pytest.approx(0.5 * sure, rel=1e-3)
    assert all(score < 1e-3 for score in found["scores"][found["labels"] == 3].tolist())
    first = found["masks"][0, 0]
    assert first.shape == (128, 160)
    rows, columns = torch.where(first > 0.5)
    tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found["boxes"][0].tolist() == [float(value) for value in tight]
    torch.testing.assert_close(
        found["boxes"][0], torch.tensor([32.0, 32, 96, 64]), atol=3, rtol=0
    )  # 16 px a cell
    assert bool((found["masks"][1] == 1).all())


def test_forward__detections_of_any_image() -> None:
    model = tiny().eval()
    with torch.no_grad():
        found = model([torch.rand(3, 40, 60), torch.rand(3, 1, 9)])
    for one, (height, width) in zip(found, ((40, 60), (1, 9)), strict=True):
        assert one["masks"].shape[1:] == (1, height, width)
        assert (one["boxes"][:, 2:] > one["boxes"][:, :2]).all()
        assert (one["boxes"][:, 2] <= width).all()
        assert one["scores"].tolist() == sorted(one["scores"].tolist(), reverse=True)


def test_build_mask2former__a_resnet50_has_44_million_parameters() -> None:
    with torch.device("meta"):
        model = build_mask2former(
            Mask2FormerSpec(backbone="resnet50-fpn"), [str(number) for number in range(80)]
        )
    assert sum(values.numel() for values in model.parameters()) == pytest.approx(44.0e6, rel=2e-3)
    assert len(model.network.model.transformer_module.decoder.layers) == 9


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"d_model": 48}, "d_model"),
        ({"out_strides": (8, 16)}, "out_strides"),
        ({"out_strides": (4, 16, 32)}, "out_strides"),
    ],
)
def test_check_mask2former__names_the_setting(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        check_mask2former(TINY.model_copy(update=changes))


def test_wsis__with_mask2former(tmp_path: Path) -> None:
    values = SHARED | {
        "architecture": "mask2former", "out_strides": (8, 16, 32), "mask2former": SIZES, "mask_source": "given",
        "crop_size": 32, "epochs": 1,
    }  # fmt: skip
    config = WsisConfig.model_validate(values)
    train = context(tmp_path, "train", "wsis")
    train.inputs = {"pgt": write_pgt(tmp_path, train.split, masked=True)}
    run(WsisStage(), config, train)
    test = context(tmp_path, "test", "wsis", checkpoint=train.out / "segmenter.safetensors")
    run(WsisStage(), WsisConfig(tta=True), test)  # the checkpoint knows what it is
    found = read_results(test.out / "segmentations.json", test.split)
    assert found["img_4"].masks is not None
    assert found["img_4"].masks[0]["size"] == [HEIGHT, WIDTH]


def test_augmentation__large_scale_jitter_fills_a_square(tmp_path: Path) -> None:
    at = context(tmp_path, "train", "wsis")
    pgt = read_dataset(write_pgt(tmp_path, at.split, masked=True), at.split).boxes
    data = PseudoGroundTruthData(at.split, pgt, Augmentation((32,), 64, crop_size=64), 0, True, FailureLog())
    areas = []
    for epoch in range(12):
        image, target = data.sample("img_1", epoch)
        assert image.shape == (3, 64, 64)
        assert target["masks"].shape[1:] == (64, 64)
        areas += target["masks"].flatten(1).sum(dim=1).tolist()
    assert max(areas) > 8 * max(1, min(areas))  # from a tenth to twice the size
