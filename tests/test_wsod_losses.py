"""Losses of weakly supervised detection against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.ops.mil import bag_index
from stages.wsod.losses import Reduction, image_bce, refinement_loss, regression_loss, row_shares
from stages.wsod.miners.oicr import RefinementHeads
from stages.wsod.model.wsddn import TwoStreamHead


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_image_bce__reductions(reduction: Reduction) -> None:
    scores = torch.tensor([[0.9, 0.2], [0.5, 1.0000002]])
    tags = torch.tensor([[1, 0], [0, 1]])
    rows = [-math.log(0.9) - math.log(0.8), -math.log(0.5)]
    expected = sum(rows) / 2 / (1 if reduction == "sum" else 2)
    assert image_bce(scores, tags, reduction).item() == pytest.approx(expected, abs=1e-6)


def test_image_bce__hopeless_scores_stay_finite() -> None:
    scores = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss = image_bce(scores, torch.tensor([[1, 0]]))
    (slope,) = torch.autograd.grad(loss, scores)
    assert torch.isfinite(loss)
    assert torch.isfinite(slope).all()


def test_image_bce__scores_that_are_not_finite_make_the_loss_nan() -> None:
    scores = torch.tensor([[0.9, math.nan], [0.5, 0.5]], requires_grad=True)
    assert math.isnan(image_bce(scores, torch.tensor([[1, 0], [0, 1]])).item())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_branch_losses__mean_over_images_of_means_over_proposals(seed: int, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = sum(counts), 4
    logits = torch.randn(rows, columns, generator=generator)
    deltas = torch.randn(rows, columns, 4, generator=generator)
    targets = torch.randn(rows, 4, generator=generator)
    labels = torch.randint(0, columns, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator)
    shares = row_shares(torch.tensor(counts), bag_index(counts))
    entropy, distance, start = 0.0, 0.0, 0
    for count in counts:
        for r in range(start, start + count):
            label = int(labels[r])
            total = sum(math.exp(v) for v in logits[r].tolist())
            weight = weights[r].item() / count / len(counts)
            entropy += weight * -math.log(math.exp(logits[r, label].item()) / total)
            for d in range(4) if label else ():
                gap = abs(deltas[r, label, d].item() - targets[r, d].item())
                distance += weight * (gap * gap / 2 if gap < 1 else gap - 0.5)
        start += count
    assert refinement_loss(logits, labels, weights, shares).item() == pytest.approx(
        entropy, rel=1e-4, abs=1e-6
    )
    assert regression_loss(deltas, labels, targets, weights, shares).item() == pytest.approx(
        distance, rel=1e-4
    )


def test_heads__shapes() -> None:
    feats = torch.zeros(5, 8)
    cls, det = TwoStreamHead(8, 3, background=True)(feats)
    assert cls.shape == det.shape == (5, 4)
    logits, deltas = RefinementHeads(8, 3, branches=2, regression=True)(feats)
    assert [tuple(t.shape) for t in logits] == [(5, 4)] * 2
    assert [tuple(t.shape) for t in deltas] == [(5, 4, 4)] * 2
