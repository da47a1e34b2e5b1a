"""Segment Anything's image encoder with PyTorch's fused attention in the place of explicit score matrices.

The library writes every attention matrix to memory several times: scores, two additions of relative positions
(Kirillov et al., 2023, following ViTDet), softmax. Fused attention takes the relative positions as a bias and
keeps the rest in registers. Results equal the library's up to rounding.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn
from torch.nn import functional as F

BIAS_FLOATS = 2**26
"""Floats of relative-position bias held at once (256 MiB in fp32): heads are taken in groups."""


def fuse_attention(encoder: nn.Module) -> int:
    """Let every attention of a library encoder run fused; returns how many there were (none in sam-nano)."""
    found = [module for module in encoder.modules() if isinstance(module, Attention)]
    for module in found:
        module.forward = MethodType(_attend, module)
    return len(found)


def library_attention(encoder: nn.Module) -> None:
    """Undo :func:`fuse_attention`."""
    for module in encoder.modules():
        if isinstance(module, Attention):
            module.__dict__.pop("forward", None)


def _attend(module: Any, feats_BHWC: Tensor) -> Tensor:
    batch, h, w, channels = feats_BHWC.shape
    heads = module.num_heads
    qkv = module.qkv(feats_BHWC).view(batch, h * w, 3, heads, -1).permute(2, 0, 3, 1, 4)
    queries, keys, values = qkv.unbind(0)  # (B, heads, N, c)
    step = max(1, BIAS_FLOATS // (batch * (h * w) ** 2)) if module.use_rel_pos else heads
    parts = []
    for first in range(0, heads, step):
        group = slice(first, first + step)
        q = queries[:, group]
        bias = relative_bias(module, q, h, w) if module.use_rel_pos else None
        parts.append(
            F.scaled_dot_product_attention(
                q, keys[:, group], values[:, group], attn_mask=bias, scale=module.scale
            )
        )
    seen = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    mixed: Tensor = module.proj(seen.transpose(1, 2).reshape(batch, h, w, channels))
    return mixed


def relative_bias(module: Any, queries_BHNc: Tensor, h: int, w: int) -> Tensor:
    """What relative positions add to the scores, ``(B, heads, N, N)``: a row's share plus a column's."""
    placed = queries_BHNc.reshape(*queries_BHNc.shape[:2], h, w, -1)
    rows = torch.einsum("bnhwc,hkc->bnhwk", placed, _table(module.rel_pos_h, h).to(placed.dtype))
    columns = torch.einsum("bnhwc,wkc->bnhwk", placed, _table(module.rel_pos_w, w).to(placed.dtype))
    return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


def _table(embeddings_LC: Tensor, size: int) -> Tensor:
    """Embedding of every difference of two positions, ``(size, size, C)``, query first."""
    if len(embeddings_LC) != 2 * size - 1:
        enlarged = F.interpolate(embeddings_LC.t()[None], size=2 * size - 1, mode="linear")
        embeddings_LC = enlarged[0].t()
    place = torch.arange(size, device=embeddings_LC.device)
    return embeddings_LC[place[:, None] - place[None, :] + size - 1]
