"""Training of the weakly supervised detector: optimizer, schedule, one step, the weights file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from pydantic import ValidationError
from torch import Tensor

from stages.core.backbones.batch_norm_folding import fold_for_inference
from stages.core.errors import SchemaError
from stages.core.runtime.device import autocast, torch_threads
from stages.core.spec import StageContext
from stages.core.training.adversary import Adversary
from stages.core.training.loop import FitSettings, Trainer, steps_per_epoch
from stages.core.training.optimizers import build_optimizer, param_groups
from stages.core.training.schedule import build_schedule
from stages.core.weights.checkpoints import load_weights, read_metadata, save_weights
from stages.wsod.batches import WeakData, WsodBatch
from stages.wsod.config import WsodConfig
from stages.wsod.criterion import wsod_losses
from stages.wsod.evidence_correction import corrected_evidence
from stages.wsod.model.detector import WsodDetector

KIND = "wsod"


def optimiser_steps(config: WsodConfig, images: int) -> int:
    """Moves of the optimiser in the whole training on that many images."""
    return config.epochs * steps_per_epoch(images, config.batch_size, config.grad_accum_steps)


def fit_detector(config: WsodConfig, data: WeakData, context: StageContext) -> WsodDetector:
    """Train on the context's split, resuming from `<out>/state` if asked to; returned in eval mode.

    Raises:
        TrainingDivergedError: a loss is not finite; names the step and the images.
    """
    if config.evidence_folds:
        data.corrected = corrected_evidence(data, config, context)
    torch.manual_seed(context.seed)  # fresh layers
    model = WsodDetector(config, len(context.split.classes)).to(context.device)

    steps = optimiser_steps(config, len(data.ids))

    def batch_losses(batch: WsodBatch, number: int) -> dict[str, Tensor]:
        on_device = batch.to(context.device)
        with autocast(context.device, context.precision):
            outputs = model(on_device.images, on_device.bags.boxes_xyxy)
        return wsod_losses(outputs, on_device.bags, config, progress=number / steps)

    with torch_threads(config.num_threads):
        trainer = Trainer(
            context=context,
            model=model,
            optimizer=make_optimizer(model, config),
            schedule=build_schedule(
                config.schedule,
                steps,
                config.warmup_fraction,
                warmup_factor=config.warmup_factor,
                milestone_fractions=config.milestones,
            ),
            items=data.ids,
            load=data.load,
            losses=batch_losses,
            settings=FitSettings(
                epochs=config.epochs,
                batch_size=config.batch_size,
                grad_accum_steps=config.grad_accum_steps,
                clip_grad_norm=config.clip_grad_norm or None,
                ema_decay=config.ema_decay or None,
                label="train",
            ),
            adversary=build_adversary(model, config),
        )
        return cast(WsodDetector, trainer.fit())


def make_optimizer(model: WsodDetector, config: WsodConfig) -> torch.optim.Optimizer:
    """Rates by part (backbone, refinement, the rest); biases learn faster and without weight decay."""
    block = model.dropblock
    groups = param_groups(
        model,
        lr=config.lr,
        weight_decay=config.weight_decay,
        module_lrs={
            model.backbone: config.lr * config.backbone_lr_factor,
            model.refinement: config.lr * config.refine_lr_factor,
        },
        bias_lr_factor=config.bias_lr_factor,
        skip=[block] if block is not None and config.dropblock_form == "two_step" else [],
    )
    return build_optimizer(config.optimizer, groups)


def build_adversary(model: WsodDetector, config: WsodConfig) -> Adversary | None:
    """The dropper as a player of its own, in the two-step form of Concrete DropBlock, with Adam.

    As published, its biases learn faster and without weight decay, and all its weights decay.
    """
    block = model.dropblock
    if block is None or config.dropblock_form != "two_step":
        return None
    groups = param_groups(
        block,
        lr=config.lr * config.dropblock_lr_factor,
        weight_decay=config.weight_decay,
        bias_lr_factor=config.bias_lr_factor,
        decay="weights",
    )
    parameters: list[Tensor] = list(block.parameters())
    return Adversary(
        parameters,
        build_optimizer("adam", groups),
        config.dropblock_weight,
        block.own_turn,
    )


def save_detector(path: Path, model: WsodDetector, config: WsodConfig, classes: Sequence[str]) -> None:
    """Fold the detector for inference, and write `detector.safetensors` with the settings it is rebuilt from."""
    fold_for_inference(model)
    metadata = {"kind": KIND, "classes": list(classes), "config": config.model_dump(mode="json")}
    save_weights(path, model, metadata)


def load_detector(path: Path, classes: Sequence[str]) -> tuple[WsodDetector, WsodConfig]:
    """Rebuild a trained detector in eval mode, and the settings it was trained with.

    Raises:
        MissingInputError: no such file.
        SchemaError: not a wsod detector, of another class list, or damaged.
    """
    config = trained_with(path)
    model = WsodDetector(config, len(classes), pretrained=False)
    fold_for_inference(model)
    load_weights(path, model, {"kind": KIND, "classes": list(classes)})
    return model.eval(), config


def trained_with(path: Path) -> WsodConfig:
    """The settings that a checkpoint was trained with.

    Raises:
        MissingInputError: no such file.
        SchemaError: not a wsod detector, or of another version.
    """
    metadata = read_metadata(path)
    if metadata.get("kind") != KIND:
        raise SchemaError(
            f"holds a '{metadata.get('kind')}', a wsod detector expected",
            where=path,
            hint="point --checkpoint at a detector.safetensors of the wsod stage",
        )
    try:
        return WsodConfig.model_validate(metadata["config"])
    except (KeyError, ValidationError) as error:
        raise SchemaError(f"its settings are not those of this version ({error})", where=path) from error
