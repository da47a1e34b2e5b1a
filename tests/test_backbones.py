"""Backbones: shapes, embedded weights, frozen normalisation, readable errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stages.core.backbones.timm_backbones import EMBEDDED_NAME, batch_norms, build_backbone, embedded_weights
from stages.core.errors import ConfigError, SchemaError


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        (EMBEDDED_NAME, (8, 16), (40, 112)),
        (EMBEDDED_NAME, (2, 4, 8, 16, 32), (16, 24, 40, 112, 320)),
        ("resnet18", (16,), (256,)),
        ("vit_tiny_patch16_224.augreg_in21k", (16,), (192,)),
    ],
)
def test_build_backbone__maps_have_promised_channels_and_strides(
    name: str, strides: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    backbone = build_backbone(name, strides, pretrained=False).eval()
    maps = backbone(torch.rand(1, 3, 224, 224))
    assert backbone.channels == channels
    assert backbone.strides == strides
    expected = [(1, c, 224 // s, 224 // s) for c, s in zip(channels, strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == expected


def test_build_backbone__layers_deeper_than_last_stride_are_pruned() -> None:
    shallow = build_backbone(EMBEDDED_NAME, (8,), pretrained=False)
    deep = build_backbone(EMBEDDED_NAME, (8, 32), pretrained=False)
    assert sum(p.numel() for p in shallow.parameters()) < 0.1 * sum(p.numel() for p in deep.parameters())


def test_build_backbone__embedded_weights_are_loaded_offline() -> None:
    backbone = build_backbone(EMBEDDED_NAME, (16,), pretrained=True)
    stem = backbone.state_dict()["body.model.conv_stem.weight"]
    torch.testing.assert_close(stem, embedded_weights()["conv_stem.weight"])
    assert backbone.mean == (0.5, 0.5, 0.5)


def test_build_backbone__grey_input_sums_the_stem_over_colours() -> None:
    backbone = build_backbone(EMBEDDED_NAME, (16,), pretrained=True, in_chans=1)
    stem = backbone.state_dict()["body.model.conv_stem.weight"]
    torch.testing.assert_close(stem, embedded_weights()["conv_stem.weight"].sum(1, keepdim=True))


def test_build_backbone__frozen_bn_stays_in_evaluation_mode() -> None:
    backbone = build_backbone(EMBEDDED_NAME, (8,), pretrained=True, frozen_bn=True).train()
    layers = list(batch_norms(backbone))
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    assert layers
    assert all(not layer.training for layer in layers)
    assert not any(p.requires_grad for layer in layers for p in layer.parameters())


def test_build_backbone__weight_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    weights = {key: value + 1.0 for key, value in embedded_weights().items()}
    save_file(weights, path)
    backbone = build_backbone(EMBEDDED_NAME, (8,), pretrained=path)
    stem = backbone.state_dict()["body.model.conv_stem.weight"]
    torch.testing.assert_close(stem, weights["conv_stem.weight"])


@pytest.mark.parametrize("content", [b"", b"not a tensor file at all", None])
def test_build_backbone__damaged_or_foreign_weight_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.safetensors"
    if content is None:
        save_file({"conv_stem.weight": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(SchemaError, match=r"weights\.safetensors"):
        build_backbone(EMBEDDED_NAME, (8,), pretrained=path)


@pytest.mark.parametrize(
    ("name", "stride", "last", "first_free"),
    [
        (EMBEDDED_NAME, 4, "blocks.1.1.bn3.bias", "blocks.2.0.conv_pw.weight"),
        (EMBEDDED_NAME, 32, "blocks.4.2.bn3.bias", None),  # deeper than what was built: all of it
        ("resnet10t", 2, "bn1.bias", "layer1.0.conv1.weight"),  # the level ends in an activation
        ("resnet10t", 4, "layer1.0.bn2.bias", "layer2.0.conv1.weight"),
        ("vgg11_bn", 4, "features.12.bias", "features.15.weight"),
        ("xception41", 2, "blocks.0.stack.conv2.bn_pw.bias", "blocks.0.stack.conv3.conv_dw.weight"),
        ("dla34", 2, "level1.1.bias", "level2.project.0.weight"),
        ("hrnet_w18_small", 8, "stage2.0.fuse_layers.1.0.0.1.bias", "transition2.2.0.0.weight"),
        ("convnext_atto", 2, None, "stem.0.weight"),  # it starts at stride 4
    ],
)
def test_freeze_through__up_to_the_last_layer_of_the_stride(
    name: str, stride: int, last: str | None, first_free: str | None
) -> None:
    backbone = build_backbone(name, (8, 16), pretrained=False)
    backbone.freeze_through(stride)
    names = [name.removeprefix("model.") for name, _ in backbone.body.named_parameters()]
    frozen = [not p.requires_grad for p in backbone.body.parameters()]
    count = 0 if last is None else names.index(last) + 1
    assert frozen == [True] * count + [False] * (len(names) - count)
    assert count == (len(names) if first_free is None else names.index(first_free))


def test_freeze_through__nothing_to_freeze_is_an_error_that_names_the_setting() -> None:
    backbone = build_backbone("hrnet_w18_small", (8, 16), pretrained=False)
    with pytest.raises(
        ConfigError,
        match=r"wsod\.freeze_through_stride(.|\n)*up to stride 4(.|\n)*another stride \(of \[8, 16",
    ):
        backbone.freeze_through(4, "wsod.freeze_through_stride")
    backbone.freeze_through(0)
    assert all(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize(("name", "stride", "depth"), [("dla34", 8, 128), ("vit_tiny_patch16_224", 16, 12)])
def test_build_backbone__deepest_map_of_a_model_that_offers_some_of_its_levels(
    name: str, stride: int, depth: int
) -> None:
    backbone = build_backbone(name, (stride,), pretrained=False)
    (found,) = backbone(torch.rand(1, 3, 224, 224))
    assert found.shape[-1] == 224 // stride
    blocks: Any = getattr(backbone.body.model, "blocks", ())
    assert depth == (len(blocks) or found.shape[1])


@pytest.mark.parametrize(
    ("name", "strides", "message"),
    [
        ("resnet81", (8,), "did you mean 'resnet"),
        ("resnet18", (3,), "no feature map at strides"),
        ("resnet18", (16, 8), "ascending"),
        ("resnet18", (), "ascending"),
    ],
)
def test_build_backbone__bad_request_names_the_hint(
    name: str, strides: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(name, strides, pretrained=False)
