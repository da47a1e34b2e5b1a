"""Test-time augmentation of the weak detector: proposals averaged over views (docs/method.md, section 5.9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stages.wsod.detection import ScoredProposals


def average(scored: Sequence[ScoredProposals]) -> ScoredProposals:
    """Mean scores and mean boxes of the same proposals over views, all in original pixels."""
    return ScoredProposals(
        torch.stack([view.scores_NC for view in scored]).mean(dim=0),
        torch.stack([view.boxes_NC4 for view in scored]).mean(dim=0),
    )
