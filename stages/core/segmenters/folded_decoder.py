"""Segment Anything's mask decoder, the same function with less arithmetic.

The decoder of Kirillov et al. (2023) lets a handful of tokens (5 + points) and thousands of image positions
attend to one another, and spends nearly all its time projecting image positions to keys, queries and values.
Because the tokens are so few, the projections can be moved over to them, exactly:

* tokens to image: ``q (W_k x) = (W_k^T q) x``, and the key bias adds the same to every position, so softmax
  does not see it; ``sum a (W_v x + b) = W_v (sum a x) + b`` since attention sums to one;
* image to tokens: ``(W_q x + b) k = x (W_q^T k) + b k``, and ``W_o`` is applied to the tokens' values. Its
  bias joins the values of one head, whose attention sums to one; what is told is added as it is multiplied.

In the first layer the image side is the same for every prompt of an image and stays unexpanded. Predicted
IoUs are known before any mask is drawn, so masks are drawn only for prompts that pass. Transposed
convolutions of size and stride 2 are matrix products on channels-last features. On a CPU the work is cut
into pieces that stay in the cache. Results equal the library's up to floating-point rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core.segmenters.protocol import SelectedMasks

CACHE_FLOATS = 2**20
"""Floats of image features worked on at once on a CPU (4 MiB); found by trial, 8 prompts of sam-nano."""


@dataclass(frozen=True)
class _Tokens:
    """What the transformer made of some prompts; ``image_PNC`` row-major."""

    mask_tokens_PKC: Tensor
    image_PNC: Tensor
    predicted_iou_PK: Tensor


class FoldedMaskDecoder:
    """Runs the weights of a library decoder; holds no parameters of its own.

    Args:
        decoder: Its modules are used in place, so weights may be loaded into it later.
    """

    def __init__(self, decoder: MaskDecoder) -> None:
        self.decoder: Any = decoder

    def decode(
        self, embedding_1CHW: Tensor, position_1CHW: Tensor, sparse_PSC: Tensor, dense_1CHW: Tensor,
        *, multimask: bool, floor_PK: Tensor | None = None,
    ) -> SelectedMasks:  # fmt: skip
        """Masks of P prompts on one image.

        Args:
            embedding_1CHW: Image embedding.
            position_1CHW: Dense positional encoding.
            sparse_PSC: Embedded points and boxes.
            dense_1CHW: Dense prompt embedding, the same for all prompts (no mask prompts).
            multimask: The three masks for ambiguous prompts (K = 3), or the single one (K = 1).
            floor_PK: Only masks with a predicted IoU above this are drawn; None draws all.
        """
        _, channels, h, w = embedding_1CHW.shape
        keys = (embedding_1CHW + dense_1CHW)[0].flatten(1).t().contiguous()  # (N, C), shared by all prompts
        position = position_1CHW[0].flatten(1).t().contiguous()
        wanted = slice(1, None) if multimask else slice(0, 1)
        step = max(1, CACHE_FLOATS // (channels * h * w)) if keys.device.type == "cpu" else len(sparse_PSC)
        pieces = []
        for piece in _ranges(len(sparse_PSC), step):
            tokens = self._tokens(keys, position, sparse_PSC[piece], wanted)
            floor = None if floor_PK is None else floor_PK[piece]
            pieces.append(self._select(tokens, wanted, floor, (h, w), piece.start))
        return SelectedMasks(
            torch.cat([p.prompt for p in pieces]), torch.cat([p.mask_index for p in pieces]),
            torch.cat([p.logits_NHW for p in pieces]), torch.cat([p.predicted_iou_PK for p in pieces]),
        )  # fmt: skip

    def every_mask(
        self, embedding_1CHW: Tensor, position_1CHW: Tensor, sparse_PSC: Tensor, dense_1CHW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All masks of P prompts, the single one first, as training needs them; keeps gradients.

        Returns:
            Low-resolution logits ``(P, K + 1, 4 h, 4 w)`` and predicted IoUs ``(P, K + 1)``.
        """
        keys = (embedding_1CHW + dense_1CHW)[0].flatten(1).t().contiguous()
        position = position_1CHW[0].flatten(1).t().contiguous()
        tokens = self._tokens(keys, position, sparse_PSC, slice(None))
        networks = self.decoder.output_hypernetworks_mlps
        filters = torch.stack([net(tokens.mask_tokens_PKC[:, i]) for i, net in enumerate(networks)], dim=1)
        grid = (embedding_1CHW.shape[2], embedding_1CHW.shape[3])
        return self._draw(tokens.image_PNC, filters, grid), tokens.predicted_iou_PK

    def _tokens(self, keys: Tensor, position: Tensor, sparse_PSC: Tensor, wanted: slice) -> _Tokens:
        d = self.decoder
        learned = torch.cat([d.iou_token.weight, d.mask_tokens.weight])
        queries = torch.cat([learned.expand(len(sparse_PSC), -1, -1), sparse_PSC], dim=1)
        queries, image = _two_way(d.transformer, queries, keys, position)
        mask_tokens = queries[:, 1 : 1 + d.num_mask_tokens][:, wanted]
        return _Tokens(mask_tokens, image, d.iou_prediction_head(queries[:, 0])[:, wanted])

    def _select(
        self, tokens: _Tokens, wanted: slice, floor_PK: Tensor | None, grid: tuple[int, int], first: int
    ) -> SelectedMasks:
        iou = tokens.predicted_iou_PK
        passed = torch.ones_like(iou, dtype=torch.bool) if floor_PK is None else iou.float() > floor_PK
        prompt, mask_index = passed.nonzero(as_tuple=True)
        drawn = passed.any(dim=1).nonzero().squeeze(1)
        networks = self.decoder.output_hypernetworks_mlps[wanted]
        filters = torch.stack([net(tokens.mask_tokens_PKC[:, i]) for i, net in enumerate(networks)], dim=1)
        positions, channels = tokens.image_PNC.shape[1:]
        step = max(1, CACHE_FLOATS // (4 * positions * channels)) if iou.device.type == "cpu" else len(drawn)
        h, w = grid
        logits = [filters.new_zeros(0, 4 * h, 4 * w)]
        for piece in _ranges(len(drawn), step):
            numbers = drawn[piece]
            images = tokens.image_PNC[numbers]
            wanted_masks = passed[numbers]
            masks = self._draw(images, filters[numbers], grid)
            logits.append(masks.flatten(0, 1) if wanted_masks.all() else masks[wanted_masks])
        return SelectedMasks(prompt + first, mask_index, torch.cat(logits), iou)

    def _draw(self, image_PNC: Tensor, filters_PKc: Tensor, grid: tuple[int, int]) -> Tensor:
        """Logits ``(p, k, 4 h, 4 w)`` of every mask of some prompts."""
        first, norm, activation, second, last_activation = self.decoder.output_upscaling
        fine = _quadruple(image_PNC, first)  # (p, N, 4, c)
        fine = F.layer_norm(fine, fine.shape[-1:], norm.weight, norm.bias, norm.eps)
        fine = _in_place(last_activation, _quadruple(_in_place(activation, fine), second))  # (p, N, 4, 4, c)
        logits = filters_PKc @ fine.flatten(1, -2).transpose(1, 2)  # (p, k, N * 16)
        (p, k), (h, w) = logits.shape[:2], grid
        # From (row, column, row in 2, column in 2, row in 4, column in 4) to rows and columns.
        cells: Tensor = logits.view(p, k, h, w, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return cells.reshape(p, k, 4 * h, 4 * w)


def _ranges(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, max(step, 1)):
        yield slice(start, min(start + step, count))


def _quadruple(feats: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """A 2x2 transposed convolution of stride 2: each position (.., C) becomes four (.., 4, c), row-major."""
    weight = conv.weight.permute(2, 3, 1, 0).reshape(-1, conv.in_channels)  # (2 * 2 * c, C)
    assert conv.bias is not None
    # The bias is added in place: handing it to the product would first fill a buffer with copies of it.
    return F.linear(feats, weight).view(*feats.shape[:-1], 4, conv.out_channels).add_(conv.bias)


def _in_place(activation: nn.Module, feats: Tensor) -> Tensor:
    """Apply an activation, over its input where nothing else needs it."""
    if isinstance(activation, nn.ReLU) and not torch.is_grad_enabled():
        return F.relu_(feats)
    applied: Tensor = activation(feats)
    return applied


def _two_way(transformer: Any, queries: Tensor, keys: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """The two-way transformer; ``keys`` enter shared ``(N, C)`` and leave per prompt ``(P, N, C)``."""
    query_position = queries
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            placed = queries + query_position
            queries = queries + layer.self_attn(q=placed, k=placed, v=queries)
        queries = layer.norm1(queries)
        found = _tokens_to_image(layer.cross_attn_token_to_image, queries + query_position, keys, position)
        queries = layer.norm2(queries + found)
        queries = layer.norm3(queries + layer.mlp(queries))
        keys = layer.norm4(
            _told(layer.cross_attn_image_to_token, keys, position, queries + query_position, queries)
        )
    found = _tokens_to_image(transformer.final_attn_token_to_image, queries + query_position, keys, position)
    settled: Tensor = transformer.norm_final_attn(queries + found)
    return settled, keys


def _heads(linear: nn.Linear, heads: int) -> Tensor:
    """Rows of a projection by head, ``(H, c, C)``."""
    return linear.weight.view(heads, -1, linear.in_features)


def _scores(folded_PJC: Tensor, keys: Tensor, position_NC: Tensor) -> Tensor:
    """``folded (keys + position)^T`` as ``(P, J, N)`` for shared ``(N, C)`` or own ``(P, N, C)`` keys."""
    if keys.ndim == 2:
        return folded_PJC @ (keys + position_NC).t()
    return torch.baddbmm(folded_PJC @ position_NC.t(), folded_PJC, keys.transpose(1, 2))


def _split(feats: Tensor, heads: int) -> Tensor:
    """``(P, T, H c)`` as ``(P, T, H, c)``."""
    return feats.view(*feats.shape[:2], heads, -1)


def _tokens_to_image(attention: Any, placed_PTC: Tensor, keys: Tensor, position_NC: Tensor) -> Tensor:
    heads = attention.num_heads
    prompts, tokens, channels = placed_PTC.shape
    queries = _split(attention.q_proj(placed_PTC), heads)  # (P, T, H, c)
    queries = queries / sqrt(queries.shape[-1])
    folded = torch.einsum("pthc,hcd->phtd", queries, _heads(attention.k_proj, heads))
    weights = _scores(folded.flatten(1, 2), keys, position_NC).softmax(dim=-1)
    seen = (weights @ keys).view(prompts, heads, tokens, channels)
    values = torch.einsum("phtd,hcd->pthc", seen, _heads(attention.v_proj, heads)).flatten(2)
    found: Tensor = attention.out_proj(values + attention.v_proj.bias)
    return found


def _told(
    attention: Any, keys: Tensor, position_NC: Tensor, placed_PTC: Tensor, tokens_PTC: Tensor
) -> Tensor:
    """The image's features after the tokens have told it, ``(P, N, C)``."""
    heads = attention.num_heads
    prompts, tokens, channels = placed_PTC.shape
    asked = _split(attention.k_proj(placed_PTC), heads)  # (P, T, H, c)
    asked = asked / sqrt(asked.shape[-1])
    folded = torch.einsum("pthc,hcd->phtd", asked, _heads(attention.q_proj, heads))
    bias = torch.einsum("pthc,hc->pht", asked, attention.q_proj.bias.view(heads, -1))
    scores = (
        _scores(folded.flatten(1, 2), keys, position_NC).view(prompts, heads, tokens, -1) + bias[..., None]
    )
    weights = scores.softmax(dim=2).flatten(1, 2)  # (P, H T, N)
    values = _split(attention.v_proj(tokens_PTC), heads)
    output = attention.out_proj.weight.view(channels, heads, -1)
    values = torch.einsum("pthc,dhc->phtd", values, output)
    first = torch.arange(heads, device=values.device) == 0
    values = (values + first[:, None, None] * attention.out_proj.bias).flatten(1, 2)
    plain = keys.ndim == 3 and keys.device.type == "cpu" and keys.dtype == values.dtype == weights.dtype
    if plain and not torch.is_grad_enabled():
        return keys.baddbmm_(weights.transpose(1, 2), values)  # nothing else needs them as they were
    return torch.baddbmm(keys.expand(prompts, -1, -1), weights.transpose(1, 2), values)
