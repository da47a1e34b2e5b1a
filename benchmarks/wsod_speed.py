"""Where a training step of `wsod` spends its time, and what mining costs beside the published way, in one run.

A step is cut into backbone, RoI (pooling and heads), mining, loss and backward, at several numbers of proposals.
``published`` is our re-enactment of the published label mining: a Python loop over the ranked boxes that compares
each with all better ones, and a loop over the ``unique()`` seeds that hands out labels. It must give the same labels.

    python -m benchmarks.wsod_speed
    python -m benchmarks.wsod_speed --device cuda --backbone vgg16-d8 --size 800 --classes 20 --pooler-type roi_pool

Times are process CPU seconds on a CPU (other programs disturb them little) and wall seconds on a GPU; medians over the
repetitions, with the span from the lowest to the highest. Memory is the peak of live tensors: of a whole step, and
of mining alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.clock import Clock
from stages.core.ops.boxes import pairwise_iou
from stages.core.runtime.seeding import numpy_generator
from stages.wsod import criterion
from stages.wsod.config import MistSettings, WsodConfig
from stages.wsod.criterion import Bags, mine, wsod_losses
from stages.wsod.fitting import make_optimizer
from stages.wsod.miners.mist import candidate_count
from stages.wsod.miners.seeds import assign_labels
from stages.wsod.model.detector import WsodDetector

MIB = float(2**20)
SECTIONS = ("backbone", "roi", "mining", "loss", "backward", "optimiser")


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes of tensors alive, of those that operators made inside the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count its outputs."""
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self._count(value)
        return out

    def _count(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        if key not in self._users:
            self._users[key] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self._users[key] += 1
        weakref.finalize(value, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self.now -= size


def drawn_proposals(count: int, height: int, width: int) -> Tensor:
    """Boxes that crowd around a few objects, as proposals do, with some at random places."""
    rng = numpy_generator(0, "proposals", count)
    objects = rng.uniform(0.1, 0.9, (5, 4))
    centre = objects[rng.integers(5, size=count), :2] + rng.normal(0, 0.05, (count, 2))
    centre[::4] = rng.uniform(0, 1, (len(centre[::4]), 2))
    half = rng.uniform(0.04, 0.3, (count, 2))
    scale = np.array([width, height] * 2)
    boxes = np.concatenate([centre - half, centre + half], axis=1).clip(0, 1) * scale
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 4)
    return torch.from_numpy(boxes.astype(np.float32))


def published_targets(scores_NC: Tensor, tags: tuple[int, ...], boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and weights the published way: box by box, seed by seed."""
    index: list[int] = []
    classes: list[int] = []
    values: list[float] = []
    count = candidate_count(len(boxes_N4))
    for tag in tags:
        ranked, order = torch.sort(scores_NC[:, tag], descending=True, stable=True)
        for position in range(count):
            box = boxes_N4[order[position]][None]
            better = boxes_N4[order[:position]]
            if position and bool((pairwise_iou(box, better) >= 0.2).any()):
                continue
            index.append(int(order[position]))
            classes.append(tag)
            values.append(float(ranked[position]))
    overlaps = pairwise_iou(boxes_N4, boxes_N4[index])
    seed_N = torch.from_numpy(overlaps.cpu().numpy().argmax(axis=1)).to(boxes_N4.device)
    best_N = overlaps.gather(1, seed_N[:, None])[:, 0]
    labels_N = torch.zeros(len(boxes_N4), dtype=torch.int64, device=boxes_N4.device)
    weights_N = torch.zeros(len(boxes_N4), device=boxes_N4.device)
    for seed in torch.unique(seed_N):
        rows = torch.nonzero(seed_N == seed)[:, 0]
        weights_N[rows] = values[int(seed)]
        labels_N[rows[best_N[rows] >= 0.5]] = classes[int(seed)] + 1
    return labels_N, weights_N


def our_targets(scores_NC: Tensor, tags: tuple[int, ...], boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
    """The stage's own mining with the published settings."""
    config = WsodConfig(
        method="mist",
        seed_weights="score",
        tie_break_by_score=False,
        mist=MistSettings(container_score_ratio=0.0),
    )
    seeds = mine(scores_NC, torch.tensor(tags, device=boxes_N4.device), boxes_N4, config)
    found = assign_labels(boxes_N4, seeds)
    return found.labels_N, found.weights_N


class Bench:
    """A detector, an image and its tags; measures one number of proposals after the other."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        published = {"out_strides": (8,), "fused_channels": 0, "fc_dim": 4096}
        self.config = WsodConfig.model_validate(
            {
                "method": options.method, "backbone": options.backbone, "pooler_type": options.pooler_type,
                "pretrained": False,
                **(published if options.backbone == "vgg16-d8" else {}),
            }
        )  # fmt: skip
        torch.manual_seed(0)
        self.model = WsodDetector(self.config, options.classes).to(self.device).train()
        self.optimizer = make_optimizer(self.model, self.config)
        self.height, self.width = options.size, options.size * 4 // 3 // 32 * 32
        image = numpy_generator(0, "image").integers(0, 256, (3, self.height, self.width), np.uint8)
        self.images = torch.from_numpy(image)[None].to(self.device)
        self.tags = tuple(range(options.tags))

    def step(self, boxes: Tensor, clock: Clock) -> None:
        """One training step, section by section."""
        bags = Bags([boxes], [torch.tensor(self.tags, device=boxes.device)])
        with clock.section("backbone"):
            feats = self.model.features(self.images)
        with clock.section("roi"):
            outputs = self.model.heads(self.model.pooled(feats, [boxes]), [len(boxes)])
        plain, mining = criterion._batch_targets, clock.seconds["mining"]

        def timed(*arguments: Any) -> Any:
            with clock.section("mining"):
                return plain(*arguments)

        start = clock.now()
        criterion._batch_targets = timed  # type: ignore[assignment]  # mining happens inside the criterion
        try:
            losses = wsod_losses(outputs, bags, self.config)
            total = torch.stack([v for name, v in losses.items() if not name.startswith("_")]).sum()
        finally:
            criterion._batch_targets = plain
        clock.seconds["loss"] += clock.now() - start - (clock.seconds["mining"] - mining)
        with clock.section("backward"):
            torch.autograd.backward(total)
        with clock.section("optimiser"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def peak_mib(self, work: Callable[[], object]) -> float:
        """Peak of the tensors that `work` makes, MiB."""
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            return float(torch.cuda.max_memory_allocated() - before) / MIB
        with LiveBytes() as live:
            work()
        return float(live.peak) / MIB

    def measure(self, proposals: int) -> dict[str, Any]:
        """Times and memory at one number of proposals."""
        boxes = drawn_proposals(proposals, self.height, self.width).to(self.device)
        generator = torch.Generator().manual_seed(1)
        scores = torch.rand(proposals, self.options.classes, generator=generator).to(self.device)
        self.step(boxes, Clock(self.device, SECTIONS))  # warm up
        steps, ways = [], []
        for _ in range(self.options.repeats):
            clock = Clock(self.device, SECTIONS)
            self.step(boxes, clock)
            steps.append(clock.seconds)
            ways.append(
                {way.__name__: self._seconds(way, scores, boxes) for way in (our_targets, published_targets)}
            )
        for mine_, theirs in zip(
            our_targets(scores, self.tags, boxes), published_targets(scores, self.tags, boxes), strict=True
        ):
            assert torch.equal(mine_, theirs), "both ways must give the same labels"
        totals = [sum(step.values()) for step in steps]
        fractions = [step["mining"] / total for step, total in zip(steps, totals, strict=True)]
        ratios = [way["published_targets"] / way["our_targets"] for way in ways]
        return {
            "proposals": proposals,
            "seconds": {name: statistics.median(step[name] for step in steps) for name in SECTIONS},
            "step_seconds": spread(totals),
            "mining_fraction": spread(fractions),
            "published_over_ours": spread(ratios),
            "published_seconds": statistics.median(way["published_targets"] for way in ways),
            "step_peak_MiB": self.peak_mib(lambda: self.step(boxes, Clock(self.device, SECTIONS))),
            "mining_peak_MiB": self.peak_mib(lambda: our_targets(scores, self.tags, boxes)),
        }

    def _seconds(
        self, way: Callable[[Tensor, tuple[int, ...], Tensor], object], scores: Tensor, boxes: Tensor
    ) -> float:
        clock = Clock(self.device, SECTIONS)
        start = clock.now()
        with torch.no_grad():
            way(scores, self.tags, boxes)
        return clock.now() - start


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def print_report(rows: list[dict[str, Any]]) -> None:
    """A plain table in milliseconds, fractions and MiB."""
    print(
        "proposals  "
        + "  ".join(f"{name:>9s}" for name in SECTIONS)
        + "     step  mining fraction    published/ours"
    )
    for row in rows:
        times = "  ".join(f"{1000 * row['seconds'][name]:9.1f}" for name in SECTIONS)
        fraction, ratio = row["mining_fraction"], row["published_over_ours"]
        print(
            f"{row['proposals']:9d}  {times}  {1000 * row['step_seconds']['median']:7.1f}"
            f"  {fraction['median']:5.1%} ({fraction['low']:.1%} to {fraction['high']:.1%})"
            f"  {ratio['median']:5.1f} ({ratio['low']:.1f} to {ratio['high']:.1f})"
        )
    print("peak of live tensors, MiB (and KiB per proposal)")
    for row in rows:
        per = 1024 / row["proposals"]
        print(
            f"{row['proposals']:9d}  step {row['step_peak_MiB']:8.1f} ({row['step_peak_MiB'] * per:7.1f})"
            f"  mining {row['mining_peak_MiB']:7.2f} ({row['mining_peak_MiB'] * per:6.2f})"
        )


def main() -> None:
    """Measure, print a table, and one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proposals", type=int, nargs="+", default=[200, 500, 2000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--method", default="mist", choices=("oicr", "mist"))
    parser.add_argument("--backbone", default="lite0-embedded")
    parser.add_argument("--pooler-type", default="roi_align", choices=("roi_align", "roi_pool"))
    parser.add_argument("--size", type=int, default=224, help="short side, pixels")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--tags", type=int, default=2, help="positive classes of the image")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    rows = [bench.measure(count) for count in options.proposals]
    print_report(rows)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
