"""Self-attention with its weights on record, and the reading of class and patch parts.

The paper's maps come straight from attention: the class-token rows give cross maps, the patch-to-patch part gives the
affinity that refines them. Tokens are ordered [C class tokens, P patch tokens]; N = C + P; rows are queries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class RecordedBlocks(nn.Module):
    """timm transformer blocks run in a row, returning each layer's attention when asked to.

    timm applies its attention dropout to the softmax output, outside the fused kernel only; a hook there sees the
    weights without a line of timm being replaced.
    """

    def __init__(self, blocks: Iterable[Any]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self._weights: list[Tensor] = []
        self._outputs: list[Tensor] = []
        for block in self.blocks:
            attention: Any = block.attn
            attention.attn_drop.register_forward_hook(lambda _m, _i, output: self._weights.append(output))
            attention.register_forward_hook(lambda _m, _i, output: self._outputs.append(output))

    @property
    def num_heads(self) -> int:
        """Heads of each layer."""
        first: Any = self.blocks[0]
        return int(first.attn.num_heads)

    def forward(
        self,
        tokens_BND: Tensor,
        bias_HNN: Tensor | None = None,
        record: bool = False,
        rope: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Run all blocks.

        Args:
            tokens_BND: tokens [B, N, D].
            bias_HNN: added to the attention logits of every layer, [heads, N, N].
            record: also return the softmax weights.
            rope: rotary positions of the patch tokens, for blocks that take them.

        Returns:
            The tokens [B, N, D] of the last block (no final normalisation), and None or what was recorded:
            softmax weights [B, L, H, N, N], and what each layer's attention returned, [B, L, N, D].
        """
        options: dict[str, Tensor | None] = {
            "attn_mask": None if bias_HNN is None else bias_HNN.unsqueeze(0).to(tokens_BND.dtype)
        }
        if rope is not None:
            options["rope"] = rope
        self._clear()
        for block in self.blocks:
            attention: Any = block.attn
            attention.fused_attn = not record
            tokens_BND = block(tokens_BND, **options)
        recorded = (torch.stack(self._weights, dim=1), torch.stack(self._outputs, dim=1)) if record else None
        self._clear()
        return tokens_BND, recorded

    def _clear(self) -> None:
        self._weights.clear()
        self._outputs.clear()


def class_to_patch(attention: Tensor, num_classes: int, grid: tuple[int, int]) -> Tensor:
    """Return the class-token rows over the patch columns, [..., N, N] -> [..., C, h, w] (the cross maps)."""
    rows = attention[..., :num_classes, num_classes : num_classes + grid[0] * grid[1]]
    return rows.reshape(*rows.shape[:-1], *grid)


def patch_to_patch(attention: Tensor, num_classes: int) -> Tensor:
    """Return the patch part, [..., N, N] -> [..., P, P]; rows sum to less than one."""
    return attention[..., num_classes:, num_classes:]


def locality_bias(
    grid: tuple[int, int], num_classes: int, num_heads: int, strength: float, patches_attend_classes: bool
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
    if not patches_attend_classes:
        bias_HNN[:, num_classes:, :num_classes] = float("-inf")
    return bias_HNN
