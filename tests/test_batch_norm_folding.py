"""Merged normalisations change neither function nor learning, and a folded network is a plain one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stages.core.backbones.batch_norm_folding import fold_for_inference, merge_batch_norms
from stages.core.backbones.timm_backbones import Backbone, batch_norms, build_backbone
from stages.core.errors import ConfigError

NAMES = ["lite0-embedded", "resnet10t"]


def frozen_backbone(name: str) -> Backbone:
    """In double precision: float32 rounding grows through thirty layers."""
    torch.manual_seed(0)
    backbone = build_backbone(name, (8, 16), pretrained=name == "lite0-embedded", frozen_bn=True)
    for norm in batch_norms(backbone):  # statistics that do something
        norm.running_mean.normal_(0, 0.1)  # type: ignore[operator]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[operator]
    backbone.freeze_through(8)
    return backbone.double()


def trainable(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in network.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", NAMES)
def test_merge_batch_norms__same_features_no_norms_left(name: str) -> None:
    backbone = frozen_backbone(name)
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    before = [feats.detach() for feats in backbone(images)]
    norms, learnt = len(list(batch_norms(backbone))), trainable(backbone)
    assert merge_batch_norms(backbone) == norms > 0
    assert not list(batch_norms(backbone))
    assert trainable(backbone) == learnt  # frozen layers stay frozen, and no shift is learnt
    merged = backbone(images)
    torch.testing.assert_close(merged, before, atol=1e-8, rtol=1e-8)
    fold_for_inference(backbone)
    assert not any("scale_C" in key for key in backbone.state_dict())
    torch.testing.assert_close(backbone(images), merged, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_merge_batch_norms__a_step_of_training_is_that_of_the_separate_layers(name: str) -> None:
    separate = frozen_backbone(name).train()
    merged = copy.deepcopy(separate)
    merge_batch_norms(merged)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for backbone in (separate, merged):
        learnt = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learnt, lr=1e-3, weight_decay=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            sum(feats.square().mean() for feats in backbone(images)).backward()
            optimizer.step()
    torch.testing.assert_close(merged(images), separate(images), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "levit_128s", "botnet26t_256"]
)
def test_merge_batch_norms__a_backbone_for_one_size_is_refused(name: str) -> None:
    backbone = build_backbone(name, (16,), pretrained=False, frozen_bn=True).train()
    with pytest.raises(ConfigError, match=rf"{name}: takes images of one size only \(.+\)(.|\n)*hint"):
        merge_batch_norms(backbone)
    assert backbone.training
