"""Concrete DropBlock: learns to hide the blocks of RoI features that the detector leans on most.

Ren et al., CVPR 2020; docs/method.md, section 5.7. A small network proposes centres of square blocks to drop,
in training only. It is adversarial, in one of two forms. `reversal`: a gradient-reversal layer lets one backward
pass lower the loss in the detector and raise it in the dropper. `two_step`, as published: the detector's pass does not
reach the dropper, which has a pass and an optimiser of its own (`ConcreteDropBlock.own_turn`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_PROBABILITY = 1e-6


class _ReverseGradient(torch.autograd.Function):
    """Identity forward, gradient times -weight backward (Ganin and Lempitsky, ICML 2015)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


def reverse_gradient(values: Tensor, weight: float) -> Tensor:
    """The values themselves; what they were made from is trained to raise the loss, at `weight` of its slope."""
    return cast(Tensor, _ReverseGradient.apply(values, weight))


def block_mask(centres_N1SS: Tensor, block: int) -> Tensor:
    """Keep-mask (N, 1, S, S): 0 on every block x block square around a centre (1), 1 elsewhere; block is odd."""
    return 1.0 - F.max_pool2d(centres_N1SS, block, stride=1, padding=block // 2)


def rescale(feats: Tensor, mask: Tensor) -> Tensor:
    """Masked features at the strength of unmasked ones: one factor for the whole batch."""
    return feats * mask.to(feats.dtype) * (mask.numel() / mask.sum().clamp(min=1.0))


class ConcreteDropBlock(nn.Module):
    """Drops blocks of pooled features, chosen by a small adversarial network.

    Args:
        channels: Channels of the RoI features.
        drop: Share of cells to drop where the network is sure (published 0.3); centres get drop / block^2.
        block: Side of a block, cells, odd.
        temperature: Of the Gumbel softmax.
        weight: Strength of the reversed gradient.
        form: `reversal` or `two_step`.
    """

    def __init__(
        self,
        channels: int,
        drop: float = 0.3,
        block: int = 3,
        temperature: float = 0.01,
        weight: float = 0.01,
        form: Literal["reversal", "two_step"] = "reversal",
    ) -> None:
        super().__init__()
        self.gamma, self.block = drop / block**2, block
        self.temperature, self.weight = temperature, weight
        self.form: Literal["reversal", "two_step"] = form
        self._on_turn = False
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(2),
        )
        self.shortcut = nn.Conv2d(channels, 2, 1, bias=False)

    @contextlib.contextmanager
    def own_turn(self) -> Iterator[None]:
        """Of the two-step form: for the block, gradients reach the dropper (plain; the caller negates the loss)."""
        self._on_turn = True
        try:
            yield
        finally:
            self._on_turn = False

    def forward(self, pooled_NSSC: Tensor) -> tuple[Tensor, Tensor]:
        """Features with blocks dropped, and the share of dropped cells (for the log). Identity in eval mode."""
        if not self.training or not len(pooled_NSSC):
            return pooled_NSSC, pooled_NSSC.new_zeros(())
        # The detector must not learn through the choice of blocks: the network sees detached features.
        seen_NCSS = pooled_NSSC.detach().permute(0, 3, 1, 2)
        logits_N1SS = (self.residual(seen_NCSS) + self.shortcut(seen_NCSS))[:, :1]
        q = (torch.sigmoid(logits_N1SS.float()) * self.gamma).clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        choices = torch.stack((q, 1 - q), dim=-1).log()
        centres_N1SS = F.gumbel_softmax(choices, tau=self.temperature, hard=True)[..., 0]
        if self.form == "reversal":
            centres_N1SS = reverse_gradient(centres_N1SS, self.weight)
        elif not self._on_turn:
            centres_N1SS = centres_N1SS.detach()
        mask_N1SS = block_mask(centres_N1SS, self.block)
        dropped = 1.0 - mask_N1SS.detach().mean()
        return rescale(pooled_NSSC, mask_N1SS.permute(0, 2, 3, 1)), dropped
