"""The folded decoder against segment_anything's own, on random weights."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from stages.core.segmenters.folded_decoder import FoldedMaskDecoder

GRID = (6, 6)


class Fixture:
    """A small decoder of random weights, an embedding, and both ways of decoding points."""

    def __init__(self, activation: type[nn.Module], heads: int) -> None:
        torch.manual_seed(3)
        width = 32
        self.decoder = MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(depth=3, embedding_dim=width, num_heads=heads, mlp_dim=48),
            num_multimask_outputs=3,
            activation=activation,
        ).eval()
        self.encoder = PromptEncoder(width, GRID, (96, 96), mask_in_chans=4).eval()
        with torch.no_grad():
            for parameter in self.decoder.parameters():  # biases of zero would hide errors
                parameter += 0.1 * torch.randn_like(parameter)
        self.embedding = torch.randn(1, width, *GRID)
        self.folded = FoldedMaskDecoder(self.decoder)

    def embed(self, points: int, prompts: int) -> tuple[Tensor, Tensor]:
        xy = torch.rand(prompts, points, 2) * 96
        sparse, dense = self.encoder(points=(xy, torch.ones(prompts, points)), boxes=None, masks=None)
        return sparse, dense

    def library(self, sparse: Tensor, dense: Tensor, multimask: bool) -> tuple[Tensor, Tensor]:
        masks, iou = self.decoder(self.embedding, self.encoder.get_dense_pe(), sparse, dense, multimask)
        return masks, iou


@pytest.mark.parametrize(
    ("activation", "heads", "points", "prompts", "multimask"),
    [
        (nn.GELU, 4, 1, 5, True),
        (nn.ReLU, 2, 1, 1, True),
        (nn.GELU, 8, 4, 3, True),  # several points per prompt
        (nn.GELU, 4, 2, 3, False),  # the single mask
    ],
)
@torch.inference_mode()
def test_decode__equals_the_library(
    activation: type[nn.Module], heads: int, points: int, prompts: int, multimask: bool
) -> None:
    f = Fixture(activation, heads)
    sparse, dense = f.embed(points, prompts)
    masks, iou = f.library(sparse, dense, multimask)
    found = f.folded.decode(f.embedding, f.encoder.get_dense_pe(), sparse, dense[:1], multimask=multimask)
    torch.testing.assert_close(found.predicted_iou_PK, iou, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits_NHW, masks.flatten(0, 1), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_decode__floor_draws_only_what_passes() -> None:
    f = Fixture(nn.GELU, 4)
    sparse, dense = f.embed(1, 7)
    masks, iou = f.library(sparse, dense, True)
    middle = iou.flatten().sort().values[10:12]  # between two, so that rounding decides over none
    floor = torch.full_like(iou, float(middle.mean()))
    floor[2] = float("inf")  # a prompt none of whose masks passes
    found = f.folded.decode(
        f.embedding, f.encoder.get_dense_pe(), sparse, dense[:1], multimask=True, floor_PK=floor
    )
    prompt, mask_index = (iou > floor).nonzero(as_tuple=True)
    assert 0 < len(prompt) < 21
    assert torch.equal(found.prompt, prompt)
    assert torch.equal(found.mask_index, mask_index)
    torch.testing.assert_close(found.logits_NHW, masks[prompt, mask_index], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.predicted_iou_PK, iou, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_decode__nothing_passes() -> None:
    f = Fixture(nn.GELU, 4)
    sparse, dense = f.embed(1, 2)
    found = f.folded.decode(
        f.embedding, f.encoder.get_dense_pe(), sparse, dense[:1], multimask=True,
        floor_PK=torch.full((2, 3), float("inf")),
    )  # fmt: skip
    assert found.logits_NHW.shape == (0, 4 * GRID[0], 4 * GRID[1])


@torch.inference_mode()
def test_decode__pieces_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    f = Fixture(nn.GELU, 4)
    sparse, dense = f.embed(1, 9)
    whole = f.folded.decode(f.embedding, f.encoder.get_dense_pe(), sparse, dense[:1], multimask=True)
    monkeypatch.setattr("stages.core.segmenters.folded_decoder.CACHE_FLOATS", 2 * 32 * 36)
    pieces = f.folded.decode(f.embedding, f.encoder.get_dense_pe(), sparse, dense[:1], multimask=True)
    assert torch.equal(pieces.prompt, whole.prompt)
    torch.testing.assert_close(pieces.logits_NHW, whole.logits_NHW, rtol=1e-4, atol=1e-4)
