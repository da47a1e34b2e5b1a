"""The whole criterion against a version written from the equations, image by image, box by box, in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stages.wsod.config import WsodConfig
from stages.wsod.criterion import Bags, wsod_losses
from stages.wsod.losses import image_bce
from stages.wsod.miners.seeds import Seeds, by_score, relative_scores
from stages.wsod.model.detector import ProposalOutputs

Row = list[float]
Seed = tuple[int, int, float]  # proposal, class, weight
CLASSES, BRANCHES = 3, 2
WEIGHTS = (3.0, 1.0)
PUBLISHED = {"container_score_ratio": 0.0}
MIST: dict[str, Any] = {
    "method": "mist",
    "background_class": True,
    "bce_reduction": "mean",
    "mist": PUBLISHED,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "published mist": MIST | {"seed_weights": "score", "tie_break_by_score": False},
    "mist": MIST | {"seed_weights": "relative", "tie_break_by_score": True,
                     "mist": PUBLISHED | {"min_score_ratio": 0.5}},
    "published oicr": {
        "method": "oicr", "oicr": {"class_agnostic_nms": True}, "seed_weights": "score", "tie_break_by_score": False,
    },
    "oicr": {"method": "oicr", "oicr": {"min_score_ratio": 0.7},
             "seed_weights": "relative", "tie_break_by_score": True},
    "first oicr": {"method": "oicr", "oicr": {"miner": "top1"}, "ignore_iou_thresh": 0.1, "seed_weights": "score"},
}  # fmt: skip


def softmax(row: Row) -> Row:
    peak = max(row)
    total = sum(math.exp(v - peak) for v in row)
    return [math.exp(v - peak) / total for v in row]


def iou(a: Row, b: Row) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def greedy(queue: list[Seed], boxes: list[Row], threshold: float) -> list[Seed]:
    kept: list[Seed] = []
    for seed in sorted(queue, key=lambda s: -s[2]):
        if all(iou(boxes[seed[0]], boxes[k[0]]) <= threshold for k in kept):
            kept.append(seed)
    return kept


def slow_seeds(scores: list[Row], tags: list[int], boxes: list[Row], config: WsodConfig) -> list[Seed]:
    queues: list[list[Seed]] = []
    for c in tags:
        order = sorted(range(len(boxes)), key=lambda i: (-scores[i][c], i))
        best = scores[order[0]][c]
        if config.method == "mist":
            count = 1 if len(boxes) < 10 else max(1, int(config.mist.top_fraction * len(boxes)))
            top = order[:count]
            queues.append(
                [
                    (i, c, scores[i][c])
                    for rank, i in enumerate(top)
                    if all(iou(boxes[i], boxes[j]) < config.mist.seed_nms_thresh for j in top[:rank])
                    and scores[i][c] >= config.mist.min_score_ratio * best
                ]
            )
        elif config.oicr.miner == "top1":
            queues.append([(order[0], c, best)])
        else:
            near = [
                (i, c, scores[i][c])
                for i in range(len(boxes))
                if scores[i][c] >= config.oicr.min_score_ratio * best
            ]
            queues.append(
                near if config.oicr.class_agnostic_nms else greedy(near, boxes, config.oicr.seed_nms_thresh)
            )
    seeds = [seed for queue in queues for seed in queue]
    if config.method == "oicr" and config.oicr.miner == "near_top" and config.oicr.class_agnostic_nms:
        seeds = greedy(seeds, boxes, config.oicr.seed_nms_thresh)
    if config.tie_break_by_score:
        seeds = sorted(seeds, key=lambda s: -s[2])
    if config.seed_weights == "relative":
        best_of = {c: max(s[2] for s in seeds if s[1] == c) for c in {s[1] for s in seeds}}
        seeds = [(i, c, value / best_of[c]) for i, c, value in seeds]
    return seeds


def slow_deltas(roi: Row, target: Row) -> Row:
    w, h = roi[2] - roi[0], roi[3] - roi[1]
    tw, th = target[2] - target[0], target[3] - target[1]
    dx = (target[0] + tw / 2 - roi[0] - w / 2) / w
    dy = (target[1] + th / 2 - roi[1] - h / 2) / h
    return [10 * dx, 10 * dy, 5 * math.log(tw / w), 5 * math.log(th / h)]


def slow_losses(
    images: list[tuple[list[Row], list[int], dict[str, Any]]], config: WsodConfig
) -> dict[str, float]:
    """Each entry: boxes, tags, logits (`cls`, `det`, `refine` per branch, `deltas` per branch) as lists."""
    losses: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        losses[name] = losses.get(name, 0.0) + value / len(images)

    first = int(config.background_class)
    for boxes, tags, logits in images:
        n, columns = len(boxes), CLASSES + first
        by_class = [softmax(row) for row in logits["cls"]]
        by_box = [softmax([logits["det"][i][c] for i in range(n)]) for c in range(columns)]
        scores = [[by_class[i][c] * by_box[c][i] for c in range(columns)] for i in range(n)]
        entropy = 0.0
        for c in range(columns):
            p = min(max(sum(scores[i][c] for i in range(n)), 1e-8), 1 - 1e-8)
            present = c - first in tags
            entropy -= math.log(p) if present else math.log(1 - p)
        add("image", entropy / (columns if config.bce_reduction == "mean" else 1))
        source = [row[first:] for row in scores]
        for k in range(BRANCHES):
            seeds = slow_seeds(source, tags, boxes, config)
            soft = [softmax(row) for row in logits["refine"][k]]
            for i in range(n):
                overlaps = [iou(boxes[i], boxes[seed[0]]) for seed in seeds]
                chosen = seeds[overlaps.index(max(overlaps))]
                label = chosen[1] + 1 if max(overlaps) >= config.fg_iou_thresh else 0
                weight = chosen[2] * WEIGHTS[k] / n
                if config.ignore_iou_thresh and max(overlaps) < config.ignore_iou_thresh:
                    weight = 0.0
                add(f"refine{k + 1}", -weight * math.log(soft[i][label]))
                if config.uses_regression:
                    target = slow_deltas(boxes[i], boxes[chosen[0]])
                    own = logits["deltas"][k][i][label]
                    gaps = [abs(a - b) for a, b in zip(own, target, strict=True)]
                    distance = sum(g * g / 2 if g < 1 else g - 0.5 for g in gaps)
                    add(f"box{k + 1}", weight * distance if label else 0.0)
            source = [row[1:] for row in soft]
    return losses


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 24), min_size=1, max_size=3))
@pytest.mark.parametrize("variant", VARIANTS)
def test_wsod_losses__match_the_equations(variant: str, seed: int, counts: list[int]) -> None:
    config = WsodConfig(**VARIANTS[variant], num_refinements=BRANCHES, refine_loss_weights=WEIGHTS)
    generator = torch.Generator().manual_seed(seed)
    first = int(config.background_class)

    def draw(*shape: int) -> Tensor:
        # float64: a comparison of overlaps with a threshold then falls alike in both versions.
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    images, boxes, tags, parts = [], [], [], []
    for count in counts:
        low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 20
        own = torch.cat(
            (low, low + 4 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 16), dim=1
        )
        present = [c for c in range(CLASSES) if c == seed % CLASSES or (seed >> c) & 1]
        part = (
            draw(count, CLASSES + first),
            draw(count, CLASSES + first),
            [draw(count, CLASSES + 1) * 2 for _ in range(BRANCHES)],
            [draw(count, CLASSES + 1, 4) for _ in range(BRANCHES)],
        )
        boxes.append(own)
        tags.append(present)
        parts.append(part)
        logits = {
            "cls": part[0].tolist(),
            "det": part[1].tolist(),
            "refine": [one.tolist() for one in part[2]],
            "deltas": [one.tolist() for one in part[3]],
        }
        images.append((own.tolist(), present, logits))
    outputs = ProposalOutputs(
        torch.cat([p[0] for p in parts]),
        torch.cat([p[1] for p in parts]),
        [torch.cat([p[2][k] for p in parts]) for k in range(BRANCHES)],
        [torch.cat([p[3][k] for p in parts]) for k in range(BRANCHES if config.uses_regression else 0)],
    )
    found = {
        k: v
        for k, v in wsod_losses(outputs, Bags(boxes, [torch.tensor(t) for t in tags]), config).items()
        if not k.startswith("_")
    }
    expected = slow_losses(images, config)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=2e-4, abs=1e-5), name


class OnHost(TorchDispatchMode):
    """Names of the operators that see or make a tensor in the host's memory, or wait for a number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        values = [*args, *(out if isinstance(out, tuple | list) else (out,))]
        if any(isinstance(v, Tensor) and v.device.type == "cpu" for v in values) or "local_scalar" in str(
            func
        ):
            self.names.add(str(func))
        return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_wsod_losses__nothing_is_copied_to_a_gpu_or_read_from_it(variant: str) -> None:
    config = WsodConfig(**VARIANTS[variant], num_refinements=BRANCHES, refine_loss_weights=WEIGHTS)
    columns, rows = CLASSES + int(config.background_class), 40
    with FakeTensorMode(), OnHost() as host:

        def gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, device="cuda", dtype=dtype)

        outputs = ProposalOutputs(
            gpu(rows, columns),
            gpu(rows, columns),
            [gpu(rows, CLASSES + 1) for _ in range(BRANCHES)],
            [gpu(rows, CLASSES + 1, 4) for _ in range(BRANCHES if config.uses_regression else 0)],
        )
        bags = Bags([gpu(15, 4), gpu(25, 4)], [gpu(1, dtype=torch.int64), gpu(2, dtype=torch.int64)])
        losses = wsod_losses(outputs, bags, config)
    assert all(value.device.type == "cuda" for value in losses.values())
    assert host.names == set()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=12), st.booleans())
def test_image_bce__matches_the_equation(pairs: list[tuple[int, int]], mean: bool) -> None:
    # A row per image of two classes; scores on a grid that has both ends, tags by parity.
    scores = torch.tensor(pairs) / 10
    tags = torch.tensor([[a % 2, b % 2] for a, b in pairs])
    total = 0.0
    for row, present in zip(scores.tolist(), tags.tolist(), strict=True):
        for score, tag in zip(row, present, strict=True):
            p = score if tag else 1 - score
            # Float32 cannot hold 1 - 1e-8; the logarithm of nothing is limited at -100, of the lower clamp at ln 1e-8.
            total += -math.log(p) if p > 1e-7 else (-math.log(1e-8) if tag else 100.0)
    expected = total / len(pairs) / (2 if mean else 1)
    assert image_bce(scores, tags, "mean" if mean else "sum").item() == pytest.approx(
        expected, rel=1e-4, abs=1e-5
    )


seed_rows = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(1, 9), st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=80, deadline=None)
@given(seed_rows)
def test_seed_scores__relative_and_by_score_match_the_slow_versions(
    rows: list[tuple[int, int, int, bool]],
) -> None:
    seeds = Seeds(
        torch.tensor([r[0] for r in rows]),
        torch.tensor([r[1] for r in rows]),
        torch.tensor([r[2] / 10 for r in rows]),
        torch.tensor([r[3] for r in rows]),
    )
    relative = relative_scores(seeds, 3)
    for place, (_, c, score, valid) in enumerate(rows):
        best = max((r[2] for r in rows if r[1] == c and r[3]), default=0)
        if valid:
            assert relative.scores_S[place].item() == pytest.approx(score / best)
    ordered = by_score(seeds)
    slow = [r for r in sorted(rows, key=lambda r: -r[2]) if r[3]]
    count = sum(r[3] for r in rows)
    assert ordered.valid_S[:count].all()
    assert not ordered.valid_S[count:].any()
    assert ordered.index_S[:count].tolist() == [r[0] for r in slow]
    assert ordered.classes_S[:count].tolist() == [r[1] for r in slow]
