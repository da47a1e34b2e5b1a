"""The training loop of every room: seeded order, schedule, EMA, checkpoints that resume bit-exactly.

The order of samples, their augmentation and the learning rate are functions of (seed, epoch, step), so
that a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from stages.core.errors import WeakSamError
from stages.core.runtime.seeding import derive_seed, numpy_generator
from stages.core.spec import StageContext
from stages.core.training.ema import ModelEma
from stages.core.training.schedule import Schedule
from stages.core.training.weights_io import load_state, save_state

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class FitSettings:
    """How long and how to train.

    Attributes:
        epochs: Passes over the items.
        batch_size: Items per step.
        accumulate: Steps whose gradients are averaged before the optimiser moves.
        clip_norm: Largest gradient norm, or None.
        ema_decay: Decay of the weight average, or None.
        save_every_seconds: Time between saved states.
        log_every: Steps between lines of ``metrics.jsonl``.
        label: For progress and state file names.
    """

    epochs: int
    batch_size: int
    accumulate: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    save_every_seconds: float = 120.0
    log_every: int = 20
    label: str = "train"


class TrainingDivergedError(WeakSamError):
    """A loss became NaN or infinite; the state before the step is saved."""


def steps_per_epoch(items: int, batch_size: int) -> int:
    """Batches per epoch: the last, partial one is dropped unless it is the only one."""
    return max(1, items // batch_size)


def epoch_batches(items: Sequence[str], batch_size: int, seed: int, epoch: int) -> list[list[str]]:
    """The batches of one epoch; depends on its arguments alone."""
    order = numpy_generator(seed, "order", epoch).permutation(len(items))
    count = steps_per_epoch(len(items), batch_size)
    return [[items[j] for j in order[i * batch_size : (i + 1) * batch_size]] for i in range(count)]


@dataclass
class Trainer(Generic[BatchT]):
    """One training run.

    Attributes:
        context: For progress, metrics, interrupts, seed and the state folder ``<out>/state``.
        model: In train mode while fitting.
        optimizer: Its groups' initial rates are the base rates of the schedule.
        schedule: Step -> factor of the base rate.
        items: Ids that make up an epoch.
        load: ``(ids, epoch) -> batch``; random choices must derive from (seed, epoch, id).
        step: ``(batch, optimizer step) -> named losses``, summed for the gradient; entries whose name
            starts with ``_`` are only logged.
        settings: How long and how.
    """

    context: StageContext
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    items: Sequence[str]
    load: Callable[[list[str], int], BatchT]
    step: Callable[[BatchT, int], dict[str, Tensor]]
    settings: FitSettings

    def __post_init__(self) -> None:
        decay = self.settings.ema_decay
        self.ema = None if decay is None else ModelEma(self.model, decay)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.done = 0  # batches finished since the start

    @property
    def state_path(self) -> Path:
        """Where the resumable state lives."""
        return self.context.out / "state" / f"{self.settings.label}.pt"

    @property
    def total_batches(self) -> int:
        """Batches of the whole run."""
        return self.settings.epochs * steps_per_epoch(len(self.items), self.settings.batch_size)

    def fit(self) -> nn.Module:
        """Train to the end and return the model to use: the average if there is one, in eval mode.

        Raises:
            TrainingDivergedError: a loss is not finite; names step and image ids.
            PreemptedError, InterruptedRunError: asked to stop; the state is saved.
        """
        torch.manual_seed(derive_seed(self.context.seed, self.settings.label))
        if self.context.resume and self.state_path.is_file():
            self._restore(load_state(self.state_path))
            self.context.log.info(
                "%s: resuming at batch %d/%d", self.settings.label, self.done, self.total_batches
            )
        self.model.train()
        saved = time.monotonic()
        for ids, epoch in self.context.progress(
            self._remaining(), self.total_batches - self.done, self.settings.label
        ):
            self._train_batch(ids, epoch)
            if time.monotonic() - saved > self.settings.save_every_seconds:
                self.save()
                saved = time.monotonic()
            try:
                self.context.interrupted()
            except WeakSamError:
                self.save()
                raise
        self.save()
        final = self.model if self.ema is None else self.ema.module
        return final.eval()

    def _remaining(self) -> Iterable[tuple[list[str], int]]:
        per_epoch = steps_per_epoch(len(self.items), self.settings.batch_size)
        skip = self.done % per_epoch
        for epoch in range(self.done // per_epoch, self.settings.epochs):
            batches = epoch_batches(self.items, self.settings.batch_size, self.context.seed, epoch)
            for ids in batches[skip:]:
                yield ids, epoch
            skip = 0

    def _train_batch(self, ids: list[str], epoch: int) -> None:
        moves, step = self.done // self.settings.accumulate, self.done
        factor = self.schedule(moves)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        losses = self.step(self.load(ids, epoch), moves)
        total = torch.stack([value for name, value in losses.items() if not name.startswith("_")]).sum()
        if not math.isfinite(total.item()):
            self._stop_diverged(ids, losses)
        (total / self.settings.accumulate).backward()  # type: ignore[no-untyped-call]
        self.done += 1
        if self.done % self.settings.accumulate == 0 or self.done == self.total_batches:
            if self.settings.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.ema is not None:
                self.ema.update(self.model)
        if step % self.settings.log_every == 0 or self.done == self.total_batches:
            values = {name.lstrip("_"): float(value.detach()) for name, value in losses.items()}
            self.context.metrics(
                {
                    "phase": self.settings.label,
                    "step": step,
                    "epoch": epoch,
                    "lr_factor": factor,
                    "loss": float(total.detach()),
                    **values,
                }
            )

    def _stop_diverged(self, ids: list[str], losses: dict[str, Tensor]) -> None:
        self.save()
        bad = [name for name, value in losses.items() if not math.isfinite(float(value.detach()))]
        raise TrainingDivergedError(
            f"loss {bad or 'total'} is not finite at batch {self.done} of {self.settings.label} (images {ids})",
            where=self.state_path,
            remedy="lower the learning rate, or look at these images; the state before this step is saved",
        )

    def save(self) -> None:
        """Save everything needed to go on as if nothing had happened."""
        save_state(
            self.state_path,
            {
                "done": self.done,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "gradients": {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None},
                "ema": None if self.ema is None else self.ema.module.state_dict(),
                "ema_updates": 0 if self.ema is None else self.ema.updates,
                "torch_rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        parameters = dict(self.model.named_parameters())
        for name, gradient in state["gradients"].items():
            parameters[name].grad = gradient.to(parameters[name].device)
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.updates = state["ema_updates"]
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
