"""Miners and label assignment against loops written from the equations, on random boxes and scores with ties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.core.ops.boxes import pairwise_iou
from stages.wsod.config import WsodConfig
from stages.wsod.criterion import mine
from stages.wsod.miners import seeds
from stages.wsod.miners.mist import candidate_count, multi_instance
from stages.wsod.miners.oicr import near_top, top1
from stages.wsod.miners.seeds import Seeds, assign_labels, by_score, relative_scores

Found = set[tuple[int, int, float]]


def problem(seed: int, boxes: int, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Random integer boxes (float64), coarse scores (so that ties happen) and positive classes."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 12, (boxes, 2), generator=generator)
    side = torch.randint(3, 12, (boxes, 2), generator=generator)
    xyxy = torch.cat((low, low + side), dim=1).double()
    scores = torch.randint(1, 20, (boxes, classes), generator=generator) / 20
    positives = torch.nonzero(torch.rand(classes, generator=generator) < 0.6).flatten()
    return xyxy, scores, positives if len(positives) else torch.tensor([1])


def as_set(seeds: Seeds) -> Found:
    rows = zip(
        seeds.index_S.tolist(),
        seeds.classes_S.tolist(),
        seeds.scores_S.tolist(),
        seeds.valid_S.tolist(),
        strict=True,
    )
    return {(i, c, s) for i, c, s, valid in rows if valid}


def slow_top1(scores: Tensor, classes: Tensor) -> Found:
    found = set()
    for c in classes.tolist():
        column = scores[:, c].tolist()
        best = max(range(len(column)), key=lambda i: (column[i], -i))
        found.add((best, c, column[best]))
    return found


def slow_nms(queue: list[tuple[float, int, int]], iou: Tensor, threshold: float) -> Found:
    """Greedy NMS of (score, class, box) entries, in list order for equal scores."""
    found: Found = set()
    kept: list[int] = []
    for score, c, i in sorted(queue, key=lambda entry: -entry[0]):
        if all(iou[i, k] <= threshold for k in kept):
            kept.append(i)
            found.add((i, c, score))
    return found


def slow_near_top(scores: Tensor, classes: Tensor, iou: Tensor, ratio: float, agnostic: bool) -> Found:
    queues: list[list[tuple[float, int, int]]] = []
    for c in classes.tolist():
        column = scores[:, c]
        best = column.max()
        queues.append([(column[i].item(), c, i) for i in range(len(column)) if column[i] >= ratio * best])
    if agnostic:
        return slow_nms([entry for queue in queues for entry in queue], iou, 0.5)
    return set().union(*(slow_nms(queue, iou, 0.5) for queue in queues))


def slow_mist(scores: Tensor, classes: Tensor, iou: Tensor, floor: float = 0.0) -> Found:
    found = set()
    count = candidate_count(scores.shape[0])
    for c in classes.tolist():
        column = scores[:, c].tolist()
        ranked = sorted(range(len(column)), key=lambda i: (-column[i], i))[:count]
        for position, j in enumerate(ranked):
            strong = scores[j, c] >= floor * scores[ranked[0], c]
            if strong and all(iou[j, other] < 0.2 for other in ranked[:position]):
                found.add((j, c, column[j]))
    return found


def without_parts(found: Found, boxes: Tensor, whole: float) -> Found:
    """Drop what lies to 85 % inside a larger box of its class with at least `whole` times its score."""

    def area(box: Tensor) -> float:
        return float((box[2:] - box[:2]).clamp(min=0).prod())

    def part(i: int, j: int) -> bool:
        shared = torch.cat(
            (torch.maximum(boxes[i, :2], boxes[j, :2]), torch.minimum(boxes[i, 2:], boxes[j, 2:]))
        )
        return area(boxes[i]) < area(boxes[j]) and area(shared) >= 0.85 * area(boxes[i]) > 0

    return {
        (i, c, score)
        for i, c, score in found
        if not any(c == d and part(i, j) and other >= whole * score for j, d, other in found)
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60))
def test_miners__match_the_slow_versions(seed: int, boxes: int) -> None:
    xyxy, scores, classes = problem(seed, boxes)
    iou = pairwise_iou(xyxy, xyxy)
    assert as_set(top1(scores, classes)) == slow_top1(scores, classes)
    assert as_set(multi_instance(scores, classes, xyxy)) == slow_mist(scores, classes, iou)
    whole = as_set(multi_instance(scores, classes, xyxy, whole=0.6))
    assert whole == without_parts(slow_mist(scores, classes, iou), xyxy, 0.6)
    mined = multi_instance(scores, classes, xyxy, floor=0.7)
    assert as_set(mined) == slow_mist(scores, classes, iou, 0.7)
    for agnostic in (False, True):
        mined = near_top(scores, classes, xyxy, 0.6, class_agnostic=agnostic, max_seeds=200)
        assert as_set(mined) == slow_near_top(scores, classes, iou, 0.6, agnostic)


def test_near_top__published_class_agnostic_nms_lets_one_class_delete_another() -> None:
    same = torch.tensor([[0.0, 0, 9, 9]] * 2)
    scores = torch.tensor([[0.9, 0.0], [0.0, 0.5]])
    classes = torch.tensor([0, 1])
    assert [(i, c) for i, c, _ in as_set(near_top(scores, classes, same, class_agnostic=True))] == [(0, 0)]
    assert len(as_set(near_top(scores, classes, same))) == 2


@pytest.mark.parametrize(("changes", "limit"), [({}, 32), ({"max_seeds": 5}, 5), ({"max_seeds": 99}, 40)])
def test_mine__near_top_has_a_limit(changes: dict[str, int], limit: int) -> None:
    apart = torch.tensor([[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(40)])
    scores, classes = torch.ones(40, 2), torch.tensor([0, 1])
    for agnostic in (False, True):
        settings = {"method": "oicr", "oicr": {"class_agnostic_nms": agnostic} | changes}
        found = as_set(mine(scores, classes, apart, WsodConfig.model_validate(settings)))
        # Of equal ones the first; class 1 has the same boxes, which class 0 suppresses if it may.
        assert found == {(i, c, 1.0) for i in range(limit) for c in ((0,) if agnostic else (0, 1))}


def test_multi_instance__a_part_gives_way_to_its_whole() -> None:
    eye, fish, pile = [10.0, 10, 20, 20], [5.0, 5, 45, 30], [0.0, 0, 100, 90]
    filler = torch.tensor([[200.0 + 20 * i, 0, 210.0 + 20 * i, 10] for i in range(27)])
    boxes = torch.cat((torch.tensor([eye, fish, pile]), filler))
    scores = torch.cat((torch.tensor([[0.9], [0.6], [0.2]]), torch.zeros(27, 1)))
    kept = {i for i, _, score in as_set(multi_instance(scores, torch.tensor([0]), boxes, whole=0.5)) if score}
    assert kept == {1, 2}
    kept = {i for i, _, score in as_set(multi_instance(scores, torch.tensor([0]), boxes)) if score}
    assert kept == {0, 1, 2}


def test_mine__settings_of_mist_reach_it() -> None:
    boxes = torch.tensor(
        [[10.0, 10, 20, 20], [5, 5, 45, 30], *([200.0 + 20 * i, 0, 210.0 + 20 * i, 10] for i in range(27))]
    )
    scores = torch.cat((torch.tensor([[0.9], [0.6]]), torch.full((27, 1), 0.1)))

    def rows(**changes: float) -> set[int]:
        settings = {"method": "mist", "mist": {"container_score_ratio": 0.0} | changes}
        mined = mine(scores, torch.tensor([0]), boxes, WsodConfig.model_validate(settings))
        return {i for i, _, _ in as_set(mined)}

    assert rows() == {0, 1, 2, 3}
    assert rows(container_score_ratio=0.5) == {1, 2, 3}
    assert rows(container_score_ratio=0.9) == {0, 1, 2, 3}
    assert rows(min_score_ratio=0.5) == {0, 1}
    assert rows(top_fraction=0.07) == {0, 1}
    assert rows(seed_nms_thresh=0.05) == {0, 2, 3}


def test_multi_instance__a_suppressed_box_still_suppresses() -> None:
    # b overlaps a; c overlaps only b. Greedy NMS would keep c, MIST does not.
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [11, 0, 21, 10]])
    scores = torch.tensor([[0.9], [0.8], [0.7]])
    filler = torch.tensor([[100.0 + 20 * i, 0, 110.0 + 20 * i, 10] for i in range(17)])
    boxes, scores = torch.cat((boxes, filler)), torch.cat((scores, torch.zeros(17, 1)))
    found = as_set(multi_instance(scores, torch.tensor([0]), boxes))
    assert {index for index, _, _ in found} == {0}


@pytest.mark.parametrize(
    ("boxes", "expected"), [(1, 1), (6, 1), (9, 1), (10, 1), (13, 1), (14, 2), (200, 30)]
)
def test_candidate_count__never_none(boxes: int, expected: int) -> None:
    assert candidate_count(boxes) == expected


@pytest.mark.parametrize("entries", [1, 7, 64])
def test_mining__blocks_do_not_matter(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, scores, classes = problem(5, 90)
    whole = multi_instance(scores, classes, boxes, portion=0.5)
    labels = assign_labels(boxes, whole)
    monkeypatch.setattr(seeds, "BLOCK_ENTRIES", {"cpu": entries})
    cut = multi_instance(scores, classes, boxes, portion=0.5)
    assert torch.equal(cut.valid_S, whole.valid_S)
    again = assign_labels(boxes, cut)
    for name in ("labels_N", "weights_N", "matched_N"):
        assert torch.equal(getattr(again, name), getattr(labels, name))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 25), st.sampled_from([None, 0.1]))
def test_assign_labels__matches_the_slow_version(seed: int, boxes: int, ignore: float | None) -> None:
    xyxy, scores, classes = problem(seed, boxes)
    iou = pairwise_iou(xyxy, xyxy)
    seeds = multi_instance(scores, classes, xyxy, portion=0.4)
    targets = assign_labels(xyxy, seeds, 0.5, ignore)
    rows = [s for s in range(len(seeds.valid_S)) if seeds.valid_S[s]]
    for i in range(boxes):
        best = max(rows, key=lambda s: (iou[i, seeds.index_S[s]].item(), -s))
        overlap = iou[i, seeds.index_S[best]].item()
        label = int(seeds.classes_S[best]) + 1 if overlap >= 0.5 else 0
        ignored = ignore is not None and overlap < ignore
        assert int(targets.labels_N[i]) == label
        assert targets.weights_N[i].item() == (0.0 if ignored else seeds.scores_S[best].item())
        assert int(targets.matched_N[i]) == int(seeds.index_S[best])


@pytest.mark.parametrize("rows", [slice(None), slice(4, 5)])
@pytest.mark.parametrize(
    "changes",
    [{"oicr": {"miner": "top1"}}, {}, {"oicr": {"class_agnostic_nms": True}}, {"method": "mist"}],
    ids=str,
)
def test_mine__scores_that_are_not_finite_give_labels_of_the_usual_size(
    changes: dict[str, Any], rows: slice
) -> None:
    boxes, scores, classes = problem(5, 20)
    scores[rows] = float("nan")
    seeds = mine(scores, classes, boxes, WsodConfig.model_validate({"method": "oicr"} | changes))
    targets = assign_labels(boxes, seeds)
    assert all(len(part) == 20 for part in (targets.labels_N, targets.weights_N, targets.matched_N))
    assert int(targets.labels_N.min()) >= 0
    assert int(targets.labels_N.max()) <= 3
    assert int(targets.matched_N.max()) < 20


def test_relative_scores__the_best_valid_seed_of_each_class_weighs_one() -> None:
    seeds = Seeds(
        torch.tensor([0, 1, 2, 3]),
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([0.02, 0.01, 0.5, 0.9]),
        torch.tensor([True, True, True, False]),
    )
    assert relative_scores(seeds, 3).scores_S[:3].tolist() == pytest.approx([1.0, 0.5, 1.0])


def test_by_score__a_shared_proposal_goes_to_the_surer_class() -> None:
    apart = torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 9]])
    seeds = Seeds(
        torch.tensor([0, 0]), torch.tensor([3, 5]), torch.tensor([0.2, 0.7]), torch.tensor([True, True])
    )
    assert int(assign_labels(apart, seeds).labels_N[0]) == 4
    assert int(assign_labels(apart, by_score(seeds)).labels_N[0]) == 6
