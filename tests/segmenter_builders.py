"""Segmenters with random weights, images and prompts for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from stages.core.segmenters.protocol import Segmenter
from stages.core.segmenters.sam_nano import build_sam_nano


def tiny_vit_sam() -> Sam:
    """A random Sam with a ViT encoder, as the published models are built, of 64 px."""
    return Sam(
        image_encoder=ImageEncoderViT(img_size=64, embed_dim=32, depth=1, num_heads=2, out_chans=32),
        prompt_encoder=PromptEncoder(32, (4, 4), (64, 64), 16),
        mask_decoder=MaskDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, num_heads=4, mlp_dim=64),
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    ).eval()


def shaken(sam: Sam, seed: int = 0) -> Sam:
    """Moves all weights, so that parts that start at zero take part too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return sam


def picture(height: int = 48, width: int = 60, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PROMPTS: list[Any] = [
    # points, labels, boxes
    pytest.param([[[5.0, 9.0]], [[30.5, 20.0]]], [[1], [1]], None, id="single points"),
    pytest.param(
        [[[5.0, 9.0], [8.0, 3.0]], [[30.5, 20.0], [0.0, 0.0]]], [[1, 0], [1, -1]], None, id="padded"
    ),
    pytest.param(
        None, None, [[2.0, 3.0, 20.0, 21.5], [0.0, 0.0, 40.0, 30.0], [9.0, 9.0, 9.0, 9.0]], id="boxes"
    ),
    pytest.param([[[5.0, 9.0]]], [[1]], [[2.0, 3.0, 20.0, 21.5]], id="point and box"),
]


def check_decode_above(segmenter: Segmenter, points_per_prompt: int) -> None:
    """Assert that `decode_above` gives the masks of `decode` whose predicted IoU is above the floor, and no others."""
    encoded = segmenter.encode(picture(40, 60))
    points, labels = torch.rand(7, points_per_prompt, 2) * 40, torch.ones(7, points_per_prompt)
    whole = segmenter.decode(encoded, points, labels, None, multimask=True)
    floor = torch.full((7, 3), float(whole.predicted_iou.median()))
    floor[2] = float("inf")
    drawn = segmenter.decode_above(encoded, points, labels, None, multimask=True, floor_PM=floor)
    prompt, mask = (whole.predicted_iou > floor).nonzero(as_tuple=True)
    assert 0 < len(prompt) < 21
    assert (drawn.prompt.tolist(), drawn.mask_index.tolist()) == (prompt.tolist(), mask.tolist())
    assert 2 not in drawn.prompt
    torch.testing.assert_close(drawn.logits_NHW, whole.low_res_logits[prompt, mask])


def random_sam() -> Sam:
    """A sam-nano of 64 px whose random weights draw something at every prompt."""
    torch.manual_seed(1)
    sam = build_sam_nano(32, 64)
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for network in sam.mask_decoder.output_hypernetworks_mlps:
            network.layers[-1].weight *= 150  # logits beyond the stability offset
        sam.mask_decoder.iou_prediction_head.layers[-1].weight *= 10
        sam.mask_decoder.iou_prediction_head.layers[-1].bias += 0.5
    return sam
