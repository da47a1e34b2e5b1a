"""Training of a detector on pseudo ground truth: optimizer, schedule, step.

Shared by the stages `retrain` and `wsis`, which differ in the targets they bring and in the RoI weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from stages.core.detectors.checkpoints import AnyDetector, build
from stages.core.detectors.settings import DetectorSettings
from stages.core.detectors.spec import AnySpec
from stages.core.detectors.training_data import DetectionBatch, PseudoGroundTruthData
from stages.core.runtime.device import autocast, torch_threads
from stages.core.spec import StageContext
from stages.core.training.loop import FitSettings, Trainer, steps_per_epoch
from stages.core.training.optimizers import build_optimizer, param_groups
from stages.core.training.schedule import build_schedule

BeforeStep = Callable[[int], None]
AfterStep = Callable[[int], dict[str, Tensor]]


def total_steps(settings: DetectorSettings, images: int) -> int:
    """Optimiser steps of the whole training on that many images."""
    return settings.epochs * steps_per_epoch(images, settings.batch_size, settings.grad_accum_steps)


def train_detector(
    settings: DetectorSettings,
    spec: AnySpec,
    data: PseudoGroundTruthData,
    context: StageContext,
    *,
    prepare: Callable[[AnyDetector], None] = lambda model: None,
    before_step: BeforeStep = lambda step: None,
    after_step: AfterStep = lambda images: {},
) -> AnyDetector:
    """Train a detector on the context's split, resuming from `<out>/state` if asked to.

    Args:
        settings: how to train.
        spec: what to build.
        data: pseudo ground truth.
        context: device, seed, progress, metrics.
        prepare: called once on the new model, e.g. to set its RoI weights.
        before_step: called with the number of the optimiser step.
        after_step: called with the number of images of the micro-batch; extra scalars for the log, means over these
            images, their names starting with `_`.

    Returns:
        The trained model (the weight average if there is one), in eval mode.

    Raises:
        TrainingDivergedError: a loss is not finite; names the step and the images.
    """
    torch.manual_seed(context.seed)  # fresh layers
    model = build(spec, context.split.classes, settings.backbone_source()).to(context.device)
    prepare(model)

    def batch_losses(batch: DetectionBatch, number: int) -> dict[str, Tensor]:
        before_step(number)
        on_device = batch.to(context.device)
        with autocast(context.device, context.precision):
            losses: dict[str, Tensor] = model(on_device.images, on_device.targets)
        return losses | after_step(len(batch.images))

    with torch_threads(settings.num_threads):
        trainer = Trainer(
            context=context,
            model=model,
            optimizer=make_optimizer(model, settings),
            schedule=build_schedule(
                settings.schedule,
                total_steps(settings, len(data.ids)),
                settings.warmup_fraction,
                warmup_factor=settings.warmup_factor,
                milestone_fractions=settings.milestones,
            ),
            items=data.ids,
            load=data.load,
            losses=batch_losses,
            settings=FitSettings(
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                grad_accum_steps=settings.grad_accum_steps,
                clip_grad_norm=settings.clip_grad_norm or None,
                ema_decay=settings.ema_decay or None,
                label="train",
            ),
        )
        return cast(AnyDetector, trainer.fit())


def make_optimizer(model: AnyDetector, settings: DetectorSettings) -> torch.optim.Optimizer:
    """The backbone at its own rate, the rest at the rate of a step's images; norms have no weight decay."""
    lr = settings.lr * settings.batch_size * settings.grad_accum_steps / settings.lr_base_size
    groups = param_groups(
        model,
        lr=lr,
        weight_decay=settings.weight_decay,
        module_lrs={model.pretrained_backbone: lr * settings.backbone_lr_factor},
        decay="matrices-and-biases" if settings.decay_biases else "matrices",
        no_decay=getattr(model, "embeddings", ()),
    )
    return build_optimizer(settings.optimizer, groups)
