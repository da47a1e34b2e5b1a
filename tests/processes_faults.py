"""Two processes in which one meets a fault; started by tests under torchrun.

Usage: python -m tests.processes_faults OUT
Every process writes what it saw to `<OUT>/<rank>.json`.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.core.errors import InputError, PreemptedError, WeakSamError
from stages.core.runtime import processes
from stages.core.spec import StageContext
from stages.core.training.batch_norm import release, synchronise
from stages.core.training.loop import FitSettings, Trainer
from stages.retrain.roi_drop import DropMeter, DropRule, roi_drop
from tests.fake_split import FakeSplit, weak


def trainer(out: Path, interrupted: Callable[[], None] = lambda: None, bad: str = "") -> Trainer[list[str]]:
    """A linear model on ten items of two per step; the loss of the item `bad` is no number."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)

    def step(ids: list[str], number: int) -> dict[str, Tensor]:
        loss = model(torch.tensor([[float(ord(i))] for i in ids])).square().mean()
        return {"square": loss * (float("nan") if bad in ids else 1.0)}

    return Trainer(
        StageContext(split=weak(FakeSplit()), run=out, out=out, interrupted_fn=interrupted),
        model, torch.optim.SGD(model.parameters(), lr=1e-5), lambda step: 1.0, tuple("abcdefghij"),
        lambda ids, epoch: ids, step, FitSettings(epochs=3, batch_size=2),
    )  # fmt: skip


def caught(work: Callable[[], Any]) -> list[str]:
    """Class and message of the error that `work` raises in this process."""
    try:
        work()
    except WeakSamError as error:
        return [type(error).__name__, error.what]
    return ["", ""]


def stop_second() -> Callable[[], None]:
    """Asks the second process alone to stop, after its third step."""
    calls = iter(range(100))

    def check() -> None:
        if next(calls) == 2 and processes.rank() == 1:
            raise PreemptedError("stopped by SIGTERM")

    return check


def only_main_fails() -> None:
    """An error of the main process reaches all."""

    def refuse() -> None:
        raise InputError("no such thing", where="here")

    processes.from_main(refuse)


def normalized_alike() -> bool:
    """Batch statistics, values and gradients over both processes are those of the whole batch in one."""
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    cut = copy.deepcopy(plain)
    images = torch.randn(6, 3, 8, 8)
    whole = plain(images)
    whole.square().mean().backward()
    layers = synchronise(cut)
    own = slice(0, 2) if processes.rank() == 0 else slice(2, 6)  # unequal shares
    part = cut(images[own])
    (part.square().sum() / whole.numel()).backward()
    release(layers)
    same = torch.allclose(part, whole[own], atol=1e-5)
    for mine, theirs in zip(cut.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        same = same and torch.allclose(processes.total(mine.grad), theirs.grad, atol=1e-5)
    for ours, expected in zip(cut.buffers(), plain.buffers(), strict=True):
        same = same and torch.allclose(ours.float(), expected.float(), atol=1e-5)
    return same and "forward" not in cut[1].__dict__


def dropped_alike() -> bool:
    """A rule that compares RoIs sees those of all processes."""
    generator = torch.Generator().manual_seed(2)
    cls, reg = torch.rand(9, generator=generator), torch.rand(9, generator=generator)
    foreground = torch.rand(9, generator=generator) < 0.8
    rule = DropRule("percentile", 0.4, 0.4)
    whole = roi_drop(cls, reg, foreground, 0, rule)
    own = slice(0, 3) if processes.rank() == 0 else slice(3, 9)
    found, _ = DropMeter(rule)(cls[own], reg[own], foreground[own])
    return torch.equal(found, whole.cls_R[own])


def main() -> None:
    """As the usage says."""
    out = Path(sys.argv[1])
    processes.join("cpu")
    rank = processes.rank()
    seen = {
        "diverged": caught(trainer(out / "diverged", bad="c").fit),
        "stopped": caught(trainer(out / "stopped", stop_second()).fit),
        "refused": caught(only_main_fails),
        "gathered": processes.gather(rank),
        "normalized": normalized_alike(),
        "dropped": dropped_alike(),
    }
    (out / f"{rank}.json").write_text(json.dumps(seen))
    processes.leave()


if __name__ == "__main__":
    main()
