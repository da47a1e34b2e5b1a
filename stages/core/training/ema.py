"""Exponential moving average of weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ModelEma:
    """A smoothed copy of a model: ``ema <- d * ema + (1 - d) * model``.

    The decay ramps up as ``min(decay, (1 + n) / (10 + n))`` so that short runs forget the start.
    Buffers are copied. ``module`` is in eval mode and takes no gradient.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards ``model``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mine, theirs in zip(self.module.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - decay)
        for kept, current in zip(self.module.buffers(), model.buffers(), strict=True):
            kept.copy_(current)
