"""Folding changes nothing but the number of layers."""

from __future__ import annotations

import pytest
import torch

from stages.core.backbones.batch_norm_folding import fold_batch_norms
from stages.core.backbones.timm_backbones import batch_norms, build_backbone
from stages.core.errors import ConfigError


@pytest.mark.parametrize("name", ["lite0-embedded", "resnet10t"])
def test_fold_batch_norms__same_features_no_norms_left(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, (8, 16), pretrained=name == "lite0-embedded", frozen_bn=True)
    for norm in batch_norms(backbone):  # statistics that do something
        norm.running_mean.normal_(0, 0.1)  # type: ignore[operator]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[operator]
    backbone.freeze_through(8)
    backbone.double()  # float32 rounding grows through thirty layers
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    before = [feats.detach() for feats in backbone(images)]
    norms = len(list(batch_norms(backbone)))
    assert fold_batch_norms(backbone) == norms > 0
    assert not list(batch_norms(backbone))
    for ours, expected in zip(backbone(images), before, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-8, rtol=1e-8)
    biases = [
        p.requires_grad
        for n, p in backbone.named_parameters()
        if n.endswith("conv1.bias") or "conv_pw.bias" in n
    ]
    assert not biases[0]  # early layers stay frozen, their new biases too
    assert biases[-1]


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "levit_128s", "botnet26t_256"]
)
def test_fold_batch_norms__a_backbone_for_one_size_is_refused(name: str) -> None:
    backbone = build_backbone(name, (16,), pretrained=False, frozen_bn=True).train()
    with pytest.raises(ConfigError, match=rf"{name}: takes images of one size only \(.+\)(.|\n)*hint"):
        fold_batch_norms(backbone)
    assert backbone.training
