"""RoI drop: leave out the foreground RoIs whose losses say that their pseudo box is wrong.

Source: docs/method.md, section 7.2. The rule acts on per-RoI losses only, so it is one pure function that any
detector can call: a RoI whose classification loss *and* regression loss are both high after the detector has
learned something (step >= T0) is more likely to be a wrong pseudo box than a hard example, and both its losses
are multiplied by zero. The denominators stay those of all RoIs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stages.core.runtime import processes

DropMode = Literal["off", "paper", "independent", "normalized", "percentile"]


@dataclass(frozen=True)
class DropRule:
    """When a RoI is dropped.

    Attributes:
        mode: `paper`: raw losses, both tests must hold. `independent`: raw losses, each loss is dropped by
            its own test. `normalized`: both tests on losses min-max scaled to [0, 1] over the foreground
            RoIs of the batch. `percentile`: both losses above their quantile among the foreground RoIs of
            the batch. `off`: never.
        tau_cls: threshold of the classification loss, nats (`paper`, `independent`), in [0, 1] for the
            others.
        tau_reg: threshold of the regression loss, in the units of the detector: encoded deltas summed over 4
            coordinates (weights 10, 10, 5, 5), or 5 L1 + 2 (1 - GIoU); in [0, 1] for `normalized`, `percentile`.
        start_step: T0, first optimiser step at which anything may be dropped.
    """

    mode: DropMode = "paper"
    tau_cls: float = 4.0
    tau_reg: float = 4.0
    start_step: int = 0

    @property
    def compares(self) -> bool:
        """Whether a RoI's fate depends on the other RoIs of the batch."""
        return self.mode in ("normalized", "percentile")


class KeepWeights(NamedTuple):
    """Factors, 0 or 1, of each RoI's classification and regression loss; both of shape [R]."""

    cls_R: Tensor
    reg_R: Tensor


def roi_drop(
    cls_losses_R: Tensor, reg_losses_R: Tensor, foreground_R: Tensor, step: int, rule: DropRule
) -> KeepWeights:
    """Decide which RoIs take part in this step's losses.

    Thresholds are strict (a loss equal to its threshold is kept), background RoIs are never dropped, nothing
    is dropped before `rule.start_step`, and losses that are all equal are all kept. No value leaves the
    device.

    Args:
        cls_losses_R: classification loss per RoI, not reduced, not normalized.
        reg_losses_R: regression loss per RoI, summed over coordinates; entries of background RoIs are
            ignored.
        foreground_R: bool, True where the RoI is matched to a pseudo box.
        step: optimiser steps done so far.

    Returns:
        Weights in the dtype of `cls_losses_R`, without gradient.
    """
    cls_R, reg_R = cls_losses_R.detach().float(), reg_losses_R.detach().float()
    ones = torch.ones_like(cls_losses_R)
    if rule.mode == "off" or step < rule.start_step or cls_R.numel() == 0:
        return KeepWeights(ones, ones)
    if rule.mode == "normalized":
        cls_R, reg_R = _min_max(cls_R, foreground_R), _min_max(reg_R, foreground_R)
    tau_cls: float | Tensor = rule.tau_cls
    tau_reg: float | Tensor = rule.tau_reg
    if rule.mode == "percentile":
        tau_cls, tau_reg = (
            _quantile(cls_R, foreground_R, rule.tau_cls),
            _quantile(reg_R, foreground_R, rule.tau_reg),
        )
    high_cls_R = foreground_R & (cls_R > tau_cls)
    high_reg_R = foreground_R & (reg_R > tau_reg)
    if rule.mode != "independent":
        high_cls_R = high_reg_R = high_cls_R & high_reg_R
    return KeepWeights(ones.masked_fill(high_cls_R, 0.0), ones.masked_fill(high_reg_R, 0.0))


class DropMeter:
    """The drop rule as a training hook: holds the current step and counts what was dropped.

    Counts stay on the device, so that a training step never waits for them.
    """

    def __init__(self, rule: DropRule) -> None:
        self.rule = rule
        self.step = 0
        self._foreground: Tensor | None = None
        self._dropped: Tensor | None = None

    def __call__(
        self, cls_losses_R: Tensor, reg_losses_R: Tensor, foreground_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weights of `roi_drop` at the current step and count them."""
        kept = self._weights(cls_losses_R, reg_losses_R, foreground_R)
        dropped = ((kept.cls_R == 0) | (kept.reg_R == 0)).sum()
        foreground = foreground_R.sum()
        self._dropped = dropped if self._dropped is None else self._dropped + dropped
        self._foreground = foreground if self._foreground is None else self._foreground + foreground
        return kept.cls_R, kept.reg_R

    def _weights(self, cls_losses_R: Tensor, reg_losses_R: Tensor, foreground_R: Tensor) -> KeepWeights:
        """The rule over this process's RoIs, or, if it compares RoIs, over those of all processes."""
        if processes.world() == 1 or not self.rule.compares:
            return roi_drop(cls_losses_R, reg_losses_R, foreground_R, self.step, self.rule)
        own = torch.stack([cls_losses_R.float(), reg_losses_R.float(), foreground_R.float()])
        parts = processes.gather(own.cpu())
        everyone = torch.cat(parts, dim=1).to(own.device)
        kept = roi_drop(everyone[0], everyone[1], everyone[2] > 0, self.step, self.rule)
        first = sum(part.shape[1] for part in parts[: processes.rank()])
        rows = slice(first, first + own.shape[1])
        return KeepWeights(kept.cls_R[rows].to(cls_losses_R), kept.reg_R[rows].to(cls_losses_R))

    def pop_counts(self) -> tuple[Tensor, Tensor]:
        """Return dropped and foreground RoIs since the last call, and reset both counts."""
        if self._foreground is None or self._dropped is None:
            return torch.zeros(()), torch.zeros(())
        counts = self._dropped, self._foreground
        self._foreground = self._dropped = None
        return counts


def _min_max(values_R: Tensor, foreground_R: Tensor) -> Tensor:
    """Scale to [0, 1] over the foreground; a range of zero gives zeros, so nothing exceeds a threshold."""
    low = values_R.masked_fill(~foreground_R, float("inf")).min()
    high = values_R.masked_fill(~foreground_R, float("-inf")).max()
    spread = high - low
    return torch.where(spread > 0, (values_R - low) / spread.clamp_min(torch.finfo(torch.float32).tiny), 0.0)


def _quantile(values_R: Tensor, foreground_R: Tensor, level: float) -> Tensor:
    """Linear quantile over the foreground; NaN (which nothing exceeds) where there is none."""
    return torch.nanquantile(values_R.masked_fill(~foreground_R, float("nan")), level)
