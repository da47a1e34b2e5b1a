"""Fused attention of the image encoder against the library's own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from stages.core.segmenters import sam_attention
from stages.core.segmenters.sam_attention import fuse_attention, library_attention


def encoder(use_rel_pos: bool = True) -> ImageEncoderViT:
    torch.manual_seed(0)
    model = ImageEncoderViT(
        img_size=96, patch_size=16, embed_dim=24, depth=3, num_heads=3, out_chans=8, use_rel_pos=use_rel_pos,
        window_size=4, global_attn_indexes=(1,), norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.5)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("use_rel_pos", [True, False])
@pytest.mark.parametrize("budget", [2**26, 36 * 36])  # all heads at once, one at a time
def test_fuse_attention__equals_the_library(
    use_rel_pos: bool, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sam_attention, "BIAS_FLOATS", budget)
    model = encoder(use_rel_pos)
    images = torch.randn(2, 3, 96, 96)
    expected = model(images)
    assert fuse_attention(model) == 3
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
    library_attention(model)
    assert torch.equal(model(images), expected)


@torch.no_grad()
def test_fuse_attention__positions_matter() -> None:
    """The comparison above would be worthless if relative positions had no effect."""
    model = encoder()
    fuse_attention(model)
    images = torch.randn(1, 3, 96, 96)
    before = model(images)
    for block in model.blocks:
        block.attn.rel_pos_h.zero_()
    assert not torch.allclose(model(images), before, atol=1e-3)
