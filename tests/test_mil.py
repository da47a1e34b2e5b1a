"""WSDDN pooling over ragged batches against a loop over images and proposals."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.ops.mil import bag_index, bag_softmax, image_scores, two_stream_scores


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 2**31))
def test_two_stream_scores__matches_the_equations(counts: list[int], classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = sum(counts)
    cls = torch.randn(rows, classes, generator=generator) * 3
    det = torch.randn(rows, classes, generator=generator) * 3
    bags = bag_index(counts)
    scores = two_stream_scores(cls, det, bags, len(counts))
    pooled = image_scores(scores, bags, len(counts))
    start = 0
    for image, count in enumerate(counts):
        for c in range(classes):
            det_sum = sum(math.exp(det[r, c].item()) for r in range(start, start + count))
            total = 0.0
            for r in range(start, start + count):
                cls_sum = sum(math.exp(cls[r, d].item()) for d in range(classes))
                expected = math.exp(cls[r, c].item()) / cls_sum * math.exp(det[r, c].item()) / det_sum
                assert math.isclose(scores[r, c].item(), expected, rel_tol=1e-4, abs_tol=1e-7)
                total += expected
            assert math.isclose(pooled[image, c].item(), total, rel_tol=1e-4, abs_tol=1e-6)
        start += count


def test_bag_softmax__large_logits_stay_finite() -> None:
    soft = bag_softmax(torch.tensor([[1e4], [1e4], [-1e4]]), torch.tensor([0, 0, 1]), 2)
    assert soft.flatten().tolist() == [0.5, 0.5, 1.0]


def test_bag_softmax__gradient_is_that_of_softmax() -> None:
    logits = torch.randn(
        5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda x: bag_softmax(x, torch.tensor([0, 0, 1, 1, 1]), 2), (logits,))
