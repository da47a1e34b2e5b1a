"""Learning-rate schedules as factors of the base rate, a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from stages.core.settings import ScheduleName

Schedule = Callable[[int], float]


def build_schedule(
    name: ScheduleName,
    total: int,
    warmup_fraction: float,
    *,
    warmup_factor: float = 0.001,
    min_lr_factor: float = 0.01,
    warmup_prefix: bool = True,
    milestone_fractions: Sequence[float] = (),
) -> Schedule:
    """Build the schedule of a training of `total` steps.

    Args:
        name: `cosine`, or `multistep`: a tenth at each milestone.
        total: Optimizer steps.
        warmup_fraction: Fraction of the steps with a growing learning rate.
        warmup_factor: Factor at the first step.
        min_lr_factor: Of `cosine`, the factor at the end.
        warmup_prefix: Of `cosine`, whether it begins after the warm-up or, cut off by it, at the first step.
        milestone_fractions: Of `multistep`, fractions of the whole training.
    """
    warmup = round(warmup_fraction * total)
    if name == "cosine":
        return warmup_cosine(total, warmup, warmup_factor, min_lr_factor, warmup_prefix)
    milestones = [round(fraction * total) for fraction in milestone_fractions]
    return warmup_steps(milestones, warmup=warmup, warmup_factor=warmup_factor)


def warmup_cosine(
    total: int, warmup: int = 0, warmup_factor: float = 0.001, final: float = 0.01, prefix: bool = True
) -> Schedule:
    """Linear warm-up from ``warmup_factor`` to 1, then a half cosine to ``final`` at ``total`` steps.

    Without ``prefix`` the cosine spans all steps, and the warm-up hides its beginning.
    """
    start = warmup if prefix else 0

    def factor(step: int) -> float:
        if step < warmup:
            return warmup_factor + (1 - warmup_factor) * step / warmup
        progress = min(1.0, (step - start) / max(1, total - start))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def warmup_steps(
    milestones: Sequence[int], gamma: float = 0.1, warmup: int = 0, warmup_factor: float = 0.001
) -> Schedule:
    """Linear warm-up, then a drop by ``gamma`` at each milestone (in steps)."""

    def factor(step: int) -> float:
        if step < warmup:
            return warmup_factor + (1 - warmup_factor) * step / warmup
        return float(gamma ** sum(step >= m for m in milestones))

    return factor
