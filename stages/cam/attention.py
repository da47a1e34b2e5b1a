"""Self-attention with its weights on record, their fusion, and the reading of class and patch parts.

The paper's maps come straight from attention: the class-token rows give cross maps, the patch-to-patch part gives the
affinity that refines them. Tokens are ordered [C class tokens, P patch tokens]; N = C + P; rows are queries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Fusion = Literal["mean", "learned"]


class RecordedBlocks(nn.Module):
    """timm transformer blocks run in a row, returning each layer's attention when asked to.

    timm applies its attention dropout to the softmax output, outside the fused kernel only; a hook there sees the
    weights without a line of timm being replaced.
    """

    def __init__(self, blocks: Iterable[Any]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self._recorded: list[Tensor] = []
        for block in self.blocks:
            attention: Any = block.attn
            attention.attn_drop.register_forward_hook(self._record)

    @property
    def num_heads(self) -> int:
        """Heads of each layer."""
        first: Any = self.blocks[0]
        return int(first.attn.num_heads)

    def _record(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._recorded.append(output)

    def forward(
        self, tokens_BND: Tensor, bias_HNN: Tensor | None = None, record: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Run all blocks.

        Args:
            tokens_BND: tokens [B, N, D].
            bias_HNN: added to the attention logits of every layer, [heads, N, N].
            record: also return the softmax weights.

        Returns:
            The tokens [B, N, D] of the last block (no final normalisation), and [B, L, H, N, N] or None.
        """
        mask = None if bias_HNN is None else bias_HNN.unsqueeze(0).to(tokens_BND.dtype)
        self._recorded.clear()
        for block in self.blocks:
            attention: Any = block.attn
            attention.fused_attn = not record
            tokens_BND = block(tokens_BND, attn_mask=mask)
        weights = torch.stack(self._recorded, dim=1) if record else None
        self._recorded.clear()
        return tokens_BND, weights


class AttentionFusion(nn.Module):
    """Average attention over layers and heads, plainly or with learned softmax weights.

    The paper's adaptive fusion feeds the mean of every attention matrix to a gate. Rows sum to one, so that mean is
    1/N whatever the image: the gates are constants and the fusion is a plain mean up to a factor. `learned` keeps
    what is left of the idea, one weight per layer and head.
    """

    def __init__(self, layers: int, heads: int, kind: Fusion = "mean") -> None:
        super().__init__()
        self.logits_LH = nn.Parameter(torch.zeros(layers, heads)) if kind == "learned" else None

    def forward(self, attention_BLHNN: Tensor) -> Tensor:
        """Return [B, N, N]; rows still sum to one."""
        if self.logits_LH is None:
            return attention_BLHNN.mean(dim=(1, 2))
        weights_LH = self.logits_LH.flatten().softmax(0).view_as(self.logits_LH)
        return torch.einsum("blhnm,lh->bnm", attention_BLHNN, weights_LH)


def class_to_patch(attention: Tensor, num_classes: int, grid: tuple[int, int]) -> Tensor:
    """Return the class-token rows over the patch columns, [..., N, N] -> [..., C, h, w] (the cross maps)."""
    rows = attention[..., :num_classes, num_classes:]
    return rows.reshape(*rows.shape[:-1], *grid)


def patch_to_patch(attention: Tensor, num_classes: int) -> Tensor:
    """Return the patch part, [..., N, N] -> [..., P, P]; rows sum to less than one."""
    return attention[..., num_classes:, num_classes:]


def locality_bias(
    grid: tuple[int, int], num_classes: int, num_heads: int, strength: float, patches_see_classes: bool
) -> Tensor:
    """Return additive attention logits [H, N, N] that keep patch tokens local.

    Patch-to-patch logits fall by `strength * 2**-head` per grid cell of distance, so that heads range from local to
    global; class tokens look everywhere. If patches do not see classes, no evidence travels from one patch to
    another through a class token.
    """
    height, width = grid
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points_P2 = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()
    distance_PP = torch.cdist(points_P2, points_P2)
    slopes_H = strength * 2.0 ** -torch.arange(num_heads)
    size = num_classes + height * width
    bias_HNN = torch.zeros(num_heads, size, size)
    bias_HNN[:, num_classes:, num_classes:] = -slopes_H[:, None, None] * distance_PP
    if not patches_see_classes:
        bias_HNN[:, num_classes:, :num_classes] = float("-inf")
    return bias_HNN
