"""NMS against a direct loop, with classes, ties, list order and merged provenance."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.core.ops.boxes import pairwise_iou
from stages.core.ops.nms import class_wise_nms, nms_in_order, nms_merging_sources


def random_boxes(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(-10, 30, (n, 2), generator=generator).float()
    size = torch.randint(0, 25, (n, 2), generator=generator).float()
    return torch.cat((corner, corner + size), dim=1)


def direct_nms(boxes: Tensor, order: list[int], threshold: float) -> tuple[list[int], dict[int, int]]:
    """Greedy loop: kept indices and, for every other box, the kept box that suppressed it."""
    iou = pairwise_iou(boxes.double(), boxes.double())
    kept: list[int] = []
    owner: dict[int, int] = {}
    for i in order:
        killer = next((k for k in kept if iou[k, i] > threshold), None)
        if killer is None:
            kept.append(i)
        else:
            owner[i] = killer
    return kept, owner


def by_score(scores: Tensor) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))


cases = st.tuples(st.integers(0, 40), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.9]))


@given(cases)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_class_wise_nms__equals_direct_loop_per_class(case: tuple[int, int, float]) -> None:
    n, seed, threshold = case
    boxes = random_boxes(n, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    scores = torch.randint(0, 6, (n,), generator=generator).float() / 5  # many ties
    classes = torch.randint(0, 3, (n,), generator=generator)
    expected: list[int] = []
    for label in range(3):
        members = [i for i in by_score(scores) if int(classes[i]) == label]
        expected += direct_nms(boxes, members, threshold)[0]
    assert class_wise_nms(boxes, scores, classes, threshold).tolist() == sorted(
        expected, key=lambda i: (-float(scores[i]), i)
    )


@given(cases)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_nms_in_order__equals_direct_loop(case: tuple[int, int, float]) -> None:
    n, seed, threshold = case
    boxes = random_boxes(n, seed)
    assert nms_in_order(boxes, threshold).tolist() == direct_nms(boxes, list(range(n)), threshold)[0]


@given(cases)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_nms_merging_sources__equals_direct_loop(case: tuple[int, int, float]) -> None:
    n, seed, threshold = case
    boxes = random_boxes(n, seed)
    generator = torch.Generator().manual_seed(seed + 2)
    scores = torch.randint(0, 6, (n,), generator=generator).float()
    sources = torch.randint(0, 16, (n,), generator=generator).to(torch.int8)
    kept, owner = direct_nms(boxes, by_score(scores), threshold)
    merged = {k: int(sources[k]) for k in kept}
    for box, killer in owner.items():
        merged[killer] |= int(sources[box])
    keep, provenance = nms_merging_sources(boxes, scores, sources, threshold)
    assert keep.tolist() == kept
    assert provenance.tolist() == [merged[k] for k in kept]
    assert provenance.dtype == torch.int8


def test_nms_in_order__list_order_decides_not_size() -> None:
    boxes = torch.tensor([[10.0, 10, 50, 50], [10, 10, 50, 52], [10, 10, 49, 50]])
    assert nms_in_order(boxes, 0.9).tolist() == [0]
    assert nms_in_order(boxes.flip(0), 0.9).tolist() == [0]


def test_class_wise_nms__classes_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    keep = class_wise_nms(boxes, torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0, 1, 0]), 0.5)
    assert keep.tolist() == [1, 2]


def test_nms__no_boxes() -> None:
    none, scores = torch.zeros(0, 4), torch.zeros(0)
    assert class_wise_nms(none, scores, scores.long(), 0.5).tolist() == []
    assert nms_in_order(none, 0.5).tolist() == []
    keep, sources = nms_merging_sources(none, scores, scores.to(torch.int8), 0.5)
    assert keep.tolist() == []
    assert sources.tolist() == []
