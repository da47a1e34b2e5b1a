"""The training loop of every stage: seeded order, schedule, EMA, several processes, states that resume bit-exactly.

The unit is a step of the optimizer. Its images (`batch_size` x `grad_accum_steps`) are cut up among the processes and
then into `grad_accum_steps` micro-batches. Losses are means over images, so neither cut changes the gradient. The order
of samples, their augmentation, the random numbers of layers and the learning rate are functions of (seed, epoch, step,
image), so that the number of steps done is all the state that sampler, schedule and generators have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stages.core.errors import OutputExistsError, PreemptedError, TrainingDivergedError, WeakSamError
from stages.core.runtime import processes
from stages.core.runtime.device import peak_memory_mib
from stages.core.runtime.image_generators import image_streams
from stages.core.runtime.interrupts import stop_here
from stages.core.runtime.seeding import derive_seed, numpy_generator
from stages.core.spec import StageContext, Work
from stages.core.training.adversary import Adversary
from stages.core.training.batch_norm import release, running_statistics, synchronise
from stages.core.training.ema import ModelEma
from stages.core.training.loading import batches
from stages.core.training.schedule import Schedule
from stages.core.weights.checkpoints import load_state, save_state

BatchT = TypeVar("BatchT")
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class FitSettings:
    """How long and how to train.

    Attributes:
        epochs: Passes over the items.
        batch_size: Items per micro-batch, all processes together.
        grad_accum_steps: Micro-batches whose gradients make one step of the optimiser.
        clip_grad_norm: Largest gradient norm, or None.
        ema_decay: Decay of the weight average, or None.
        label: For progress and state file names.
    """

    epochs: int
    batch_size: int
    grad_accum_steps: int = 1
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    label: str = "train"


def steps_per_epoch(items: int, batch_size: int, grad_accum_steps: int = 1) -> int:
    """Steps of the optimiser per epoch: the last, partial one is dropped unless it is the only one."""
    return max(1, items // (batch_size * grad_accum_steps))


def epoch_batches(items: Sequence[str], batch_size: int, seed: int, epoch: int) -> list[list[str]]:
    """The batches of one epoch; depends on its arguments alone."""
    order = numpy_generator(seed, "order", epoch).permutation(len(items))
    count = steps_per_epoch(len(items), batch_size)
    return [[items[j] for j in order[i * batch_size : (i + 1) * batch_size]] for i in range(count)]


def micro_batches(ids: Sequence[str], grad_accum_steps: int, rank: int, world: int) -> list[list[str]]:
    """The images of a step that one process takes, in at most `grad_accum_steps` lists: as many in every process.

    Every image is in exactly one list of one process; lists are empty only where the processes do not share evenly.
    """
    own = list(ids[rank::world])
    most = math.ceil(len(ids) / world)
    size = max(1, math.ceil(len(ids) / world / grad_accum_steps))
    return [own[i : i + size] for i in range(0, most, size)]


class _Losses(nn.Module):
    """The losses of a micro-batch as a module, so that DistributedDataParallel can watch it."""

    def __init__(self, model: nn.Module, losses: Callable[[Any, int], Losses]) -> None:
        super().__init__()
        self.model = model
        self._losses = losses

    def forward(self, batch: Any, step: int) -> Losses:
        """Named losses."""
        return self._losses(batch, step)


@dataclass(frozen=True)
class _MicroBatch:
    """A micro-batch whose gradients are there.

    Attributes:
        images: The images asked for.
        batch: What was loaded for them.
        losses: Detached, by name.
        share: Of the step's images.
    """

    images: list[str]
    batch: Any
    losses: Losses
    share: float

    @property
    def used(self) -> Sequence[str]:
        """The images in the batch: others than asked for where those could not be read."""
        return getattr(self.batch, "ids", self.images)


@dataclass
class Trainer(Generic[BatchT]):
    """One training run; every process of the launch makes one.

    Attributes:
        context: For progress, metrics, interrupts, seed and the state folder ``<out>/state``.
        model: In train mode while fitting.
        optimizer: Its groups' initial rates are the base rates of the schedule.
        schedule: Step -> factor of the base rate.
        items: Ids that make up an epoch.
        load: ``(ids, epoch) -> batch``; random choices must derive from (seed, epoch, id).
        losses: ``(batch, step) -> named losses``, each a mean over the images of the batch. They are summed for the
            gradient; entries whose name starts with ``_`` are only logged.
        settings: How long and how.
        adversary: A second player that learns to raise the loss, or None.
        epoch_end: Called with every epoch that is over, in every process, before its state is saved.
    """

    context: StageContext
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    items: Sequence[str]
    load: Callable[[list[str], int], BatchT]
    losses: Callable[[BatchT, int], Losses]
    settings: FitSettings
    adversary: Adversary | None = None
    epoch_end: Callable[[int], None] = lambda epoch: None
    _network: nn.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        decay = self.settings.ema_decay
        self.ema = None if decay is None else ModelEma(self.model, decay)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.done = 0  # steps finished since the start
        self._sums, self._summed = torch.zeros(1), 0  # of the losses since the last line of metrics
        self._data_seconds, self._line_began, self._grad_norm = 0.0, time.monotonic(), torch.zeros(())
        device = self.context.device.split(":")[0]
        self.scaler = torch.amp.GradScaler(device, enabled=self.context.precision == "fp16")

    @property
    def state_path(self) -> Path:
        """Where the resumable state lives."""
        return self.context.out / "state" / f"{self.settings.label}.pt"

    @property
    def epoch_steps(self) -> int:
        """Steps of the optimiser in one epoch."""
        return steps_per_epoch(len(self.items), self.settings.batch_size, self.settings.grad_accum_steps)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.settings.epochs * self.epoch_steps

    def fit(self) -> nn.Module:
        """Train to the end and return the model to use: the average if there is one, in eval mode.

        Raises:
            TrainingDivergedError: a loss is not finite in some process, with step and image ids, or the weights
                are not in the end.
            OutputExistsError: the state to resume from was trained in another precision, or is another network's.
            PreemptedError, InterruptedRunError: asked to stop; the state is saved.
        """
        label = self.settings.label
        if self.context.resume and self.state_path.is_file():
            self._restore(load_state(self.state_path))
            self.context.log.info("%s: resuming at step %d/%d", label, self.done, self.total_steps)
        self.context.rewind_metrics(label, self.done)
        self.model.train()
        layers = synchronise(self.model)
        self._network = self._shared()
        saved = self._line_began = time.monotonic()
        wanted = ((_asked(part, ids), epoch) for parts, ids, epoch in self._remaining() for part in parts)
        with batches(self.load, wanted, self.context.loaders, self.context.failures) as loaded:
            batch = self.settings.batch_size * self.settings.grad_accum_steps
            work = Work(label, self.total_steps, "steps", images_each=batch, before=self.done)
            for parts, ids, epoch in self.context.progress(self._remaining(), work):
                self._take_step(parts, ids, epoch, loaded)
                if self.done % self.epoch_steps == 0:
                    self.epoch_end(epoch)
                if time.monotonic() - saved >= self.context.save_every:
                    self.save()
                    saved = time.monotonic()
                self._stop_if_asked()
        release(layers)
        self._check_weights()
        self.save()
        final = self.model if self.ema is None else self.ema.module
        return final.eval()

    def _shared(self) -> nn.Module:
        """The losses under DistributedDataParallel, or themselves in a single process."""
        bare = _Losses(self.model, self.losses)
        if processes.world() == 1:
            return bare
        # A branch without a foreground box leaves parameters without a gradient in one process and not in another.
        return DistributedDataParallel(bare, find_unused_parameters=True)

    def _stop_if_asked(self) -> None:
        """Stop all processes when one of them is asked to."""
        asked: WeakSamError | None = None
        place = f"step {self.done}/{self.total_steps} of {self.settings.label}"
        try:
            stop_here(self.context.interrupted, place)
        except WeakSamError as error:
            asked = error
        if processes.any_process(asked is not None):
            self.save()
            processes.wait_for_all()  # a launcher may kill the others as soon as one ends
            raise asked or PreemptedError(f"stopped with another process after {place}; the state is saved")

    def _remaining(self) -> Iterable[tuple[list[list[str]], list[str], int]]:
        """Images of every step that is left: those of this process's micro-batches, those of all, and the epoch."""
        size, skip = self.settings.batch_size * self.settings.grad_accum_steps, self.done % self.epoch_steps
        for epoch in range(self.done // self.epoch_steps, self.settings.epochs):
            for ids in epoch_batches(self.items, size, self.context.seed, epoch)[skip:]:
                cut = micro_batches(ids, self.settings.grad_accum_steps, processes.rank(), processes.world())
                yield cut, ids, epoch
            skip = 0

    def _take_step(
        self, parts: Sequence[list[str]], ids: list[str], epoch: int, loaded: Iterator[BatchT]
    ) -> None:
        """One step of the optimiser: the gradients of this process's micro-batches, then the step itself."""
        factor = self._set_rates()
        rank, world = processes.rank(), processes.world()
        # What draws from torch's own generator sees the same numbers after a restart.
        torch.manual_seed(derive_seed(self.context.seed, self.settings.label, "move", self.done, rank))
        statistics = running_statistics(self.model)
        seen: list[_MicroBatch] = []
        for number, part in enumerate(parts):
            images, share = _asked(part, ids), len(part) / len(ids)
            began = time.monotonic()
            batch = next(loaded)
            self._data_seconds += time.monotonic() - began
            with nullcontext() if number == len(parts) - 1 else self._quietly():
                with image_streams(self._seeds("layers", epoch, images)):
                    losses: Losses = self._network(batch, self.done)
                # DistributedDataParallel averages over the processes; the sum is wanted.
                torch.autograd.backward(self.scaler.scale(_total(losses) * (share * world)))
            kept = {name: value.detach() for name, value in losses.items()}
            seen.append(_MicroBatch(images, batch, kept, share))
        self._check_finite(seen, statistics)
        self._step_optimizer()
        if self.adversary is not None:
            self.adversary.step(lambda: self._adversary_losses(seen, epoch), factor, self.scaler.get_scale())
        self.done += 1
        if self.ema is not None:
            self.ema.update(self.model)
        self._report(seen, len(ids), factor, epoch)

    def _seeds(self, purpose: str, epoch: int, images: Sequence[str]) -> list[int]:
        """A seed per image for the random numbers of layers."""
        return [derive_seed(self.context.seed, purpose, epoch, image) for image in images]

    def _quietly(self) -> Any:
        """No exchange of gradients: that of the last micro-batch of a step carries them all."""
        network = self._network
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def _adversary_losses(self, seen: Sequence[_MicroBatch], epoch: int) -> Iterable[Tensor]:
        """Fresh losses of the same batches, each weighted by its share of the step; other random numbers."""
        for one in seen:
            with image_streams(self._seeds("adversary", epoch, one.images)):
                yield _total(self.losses(one.batch, self.done)) * one.share

    def _set_rates(self) -> float:
        factor = self.schedule(self.done)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        return factor

    def _step_optimizer(self) -> None:
        limit = self.settings.clip_grad_norm
        if limit is not None or self._reports(self.done):
            self.scaler.unscale_(self.optimizer)
            # Without a limit nothing is clipped, the norm is looked at.
            self._grad_norm = torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), math.inf if limit is None else limit
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)

    def _check_finite(self, seen: Sequence[_MicroBatch], statistics: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Stop all processes if one of them met a loss that is not finite, with the model as before the step.

        The only place where a step waits for the device, once for all its micro-batches.
        """
        finite = bool(torch.stack([_total(one.losses) for one in seen]).isfinite().all())
        if not processes.any_process(not finite):
            return
        bad = [(one.used, _not_finite(one.losses)) for one in seen if not _total(one.losses).isfinite()]
        found = [entry for entries in processes.gather(bad) for entry in entries]
        images = sorted({image for used, _ in found for image in used})
        names = sorted({name for _, own in found for name in own})
        self.model.zero_grad(set_to_none=True)
        for buffer, before in statistics:
            buffer.copy_(before)
        self.save()
        processes.wait_for_all()
        raise TrainingDivergedError(
            f"loss {names or 'total'} is not finite at step {self.done} of {self.settings.label} (images {images})",
            where=self.state_path,
            hint="look at these images, or start from scratch (--overwrite) with a lower learning rate; "
            "the state before this step is saved",
        )

    def _check_weights(self) -> None:
        """After the last step no loss would tell that the weights are not finite."""
        if all(bool(value.isfinite().all()) for value in self.model.parameters()):
            return
        raise TrainingDivergedError(
            f"weights are not finite after the last step of {self.settings.label}",
            where=self.context.out,
            hint="start from scratch (--overwrite) with a lower learning rate",
        )

    def _reports(self, step: int) -> bool:
        """Whether a line of metrics is written after this step."""
        return step % self.context.log_every == 0 or step == self.total_steps - 1

    def _report(self, seen: Sequence[_MicroBatch], images: int, factor: float, epoch: int) -> None:
        """Every `log_every` steps a line of metrics: means over the images of all processes since the last line."""
        names, number = list(seen[0].losses), self.done - 1
        for one in seen:
            row = torch.stack([_total(one.losses), *one.losses.values()]).float() * one.share
            self._sums = self._sums.to(row) + row  # the zero it starts from is broadcast
        self._summed += 1
        if not self._reports(number):
            return
        values = processes.total(self._sums.cpu() / self._summed).tolist()
        seconds = (time.monotonic() - self._line_began) / self._summed
        data_seconds = self._data_seconds / self._summed
        self._sums, self._summed = torch.zeros(1), 0
        self._data_seconds, self._line_began = 0.0, time.monotonic()
        self.context.metrics(
            {
                "phase": self.settings.label,
                "step": number,
                "epoch": epoch,
                "lr_factor": factor,
                "lr": max(group["lr"] for group in self.optimizer.param_groups),
                "grad_norm": float(self._grad_norm),
                "step_s": round(seconds, 6),
                "data_s": round(data_seconds, 6),
                "images_per_second": round(images / max(seconds, 1e-9), 3),
                "peak_memory_mib": round(peak_memory_mib(self.context.device), 1),
                "loss": values[0],
                **{name.lstrip("_"): value for name, value in zip(names, values[1:], strict=True)},
            }
        )

    def save(self) -> None:
        """Save everything needed to go on as if nothing had happened; the main process writes."""
        if not processes.is_main():
            return
        save_state(
            self.state_path,
            {
                "done": self.done,
                "precision": self.context.precision,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "adversary": None if self.adversary is None else self.adversary.optimizer.state_dict(),
                "ema": None if self.ema is None else self.ema.module.state_dict(),
                "ema_updates": 0 if self.ema is None else self.ema.updates,
            },
        )

    def _restore(self, state: dict[str, Any]) -> None:
        precision = state.get("precision", self.context.precision)
        if precision != self.context.precision:
            raise OutputExistsError(
                f"cannot resume in {self.context.precision}: this training began in {precision}",
                where=self.state_path,
                hint=f"add --precision {precision}, or use --overwrite to start from scratch",
            )
        self.done = state["done"]
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise OutputExistsError(
                f"cannot resume: another version trained another network ({str(error).splitlines()[0]})",
                where=self.state_path,
                hint="use --overwrite to start from scratch",
            ) from error
        self.scaler.load_state_dict(state["scaler"])
        if self.adversary is not None:
            self.adversary.optimizer.load_state_dict(state["adversary"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.updates = state["ema_updates"]


def _asked(part: list[str], ids: list[str]) -> list[str]:
    """Images to load for a part of a step; a process without one takes part with one that does not count."""
    return part or ids[:1]


def _total(losses: Losses) -> Tensor:
    return torch.stack([value for name, value in losses.items() if not name.startswith("_")]).sum()


def _not_finite(losses: Losses) -> list[str]:
    return [name for name, value in losses.items() if not math.isfinite(float(value.detach()))]
