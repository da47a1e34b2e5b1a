"""A second player in training: a part of the model that learns to raise the loss which the rest lowers.

The published two-step form: after the model's own step, a fresh pass of the same images gives the loss again, and the
adversary's own optimiser moves its parameters up its slope. Nothing else moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.core.runtime import processes


@dataclass
class Adversary:
    """Parameters that raise the loss.

    Attributes:
        parameters: What moves.
        optimizer: Over these parameters; its initial rates are the base rates.
        weight: Strength of the negated loss.
        turn: Context in which the adversary's choices carry gradients.
    """

    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer
    weight: float
    turn: Callable[[], AbstractContextManager[None]]
    base_rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, losses: Callable[[], Iterable[Tensor]], factor: float, scale: float = 1.0) -> None:
        """Take one step up the sum of fresh losses of the step's images, of all processes.

        A slope that is not finite is passed over: it would stay in the optimiser's averages.

        Args:
            losses: Makes the losses of this process's micro-batches, each weighted by its share of the images.
            factor: Of the learning rate.
            scale: Of the losses while their slope is computed, so that half precision holds it.
        """
        slopes = [torch.zeros_like(parameter) for parameter in self.parameters]
        with self.turn():
            for loss in losses():
                found = torch.autograd.grad(loss * scale, self.parameters, allow_unused=True)
                for slope, own in zip(slopes, found, strict=True):
                    if own is not None:
                        slope.add_(own)
        slopes = [processes.total(slope) / scale for slope in slopes]
        if not all(bool(slope.isfinite().all()) for slope in slopes):
            return
        for parameter, slope in zip(self.parameters, slopes, strict=True):
            parameter.grad = slope * -self.weight
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
