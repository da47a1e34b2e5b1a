"""Training of the classifier on image tags, and the choice of its epoch without any box or mask.

A part of the train split may be held out (`val_fraction`); the epoch with the best mean average precision on it is
kept. Average precision is per class, over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stages.cam.augmentation import CropAugmentation
from stages.cam.building import build_classifier
from stages.cam.classifier import HybridBody, MultiClassTokenClassifier
from stages.cam.config import CamConfig
from stages.cam.losses import tag_losses
from stages.cam.maps import TagClassifier, view_sizes
from stages.core.artifacts.files import read_json, write_json
from stages.core.datasets.images import load_image
from stages.core.errors import ImageError
from stages.core.runtime.device import autocast, torch_threads
from stages.core.runtime.image_generators import draw_per_image
from stages.core.runtime.processes import gather, is_main, own_items, wait_for_all
from stages.core.runtime.seeding import derive_seed, numpy_generator
from stages.core.spec import Counts, StageContext
from stages.core.training.loading import moved
from stages.core.training.loop import FitSettings, Trainer, steps_per_epoch
from stages.core.training.optimizers import build_optimizer, param_groups
from stages.core.training.readable_images import ReadableImages
from stages.core.training.schedule import build_schedule
from stages.core.weights.checkpoints import load_state, save_state

MIN_HELD_OUT = 8
"""Fewer held-out images cannot rank epochs; the last epoch is taken then."""


@dataclass
class TagBatch:
    """Image ids, images [B, 3, S, S] in [0, 1] and tags [B, C] in {0, 1}."""

    ids: list[str]
    images: Tensor
    tags: Tensor


class TagData:
    """Augmented training crops with their tags; what is drawn depends on (seed, epoch, image id) alone."""

    def __init__(self, context: StageContext, config: CamConfig, ids: Sequence[str]) -> None:
        self.context, self.augment, self.ids = context, CropAugmentation(config), list(ids)
        self._images = ReadableImages(context.split, self.ids, context.failures)

    def load(self, ids: Sequence[str], epoch: int) -> TagBatch:
        """Read a step's images; an unreadable one is recorded and the next readable one takes its place.

        Raises:
            InputError: no image can be read.
        """
        names, images, tags = [], [], []
        for wanted in ids:
            used, pixels_HW3 = self._images.read(wanted)
            names.append(used)
            images.append(self.augment(pixels_HW3, numpy_generator(self.context.seed, "crop", epoch, used)))
            tags.append(tag_vector(self.context, used))
        return TagBatch(names, torch.cat(images), torch.stack(tags))


def tag_vector(context: StageContext, image_id: str) -> Tensor:
    """Return the image's tags as a 0/1 vector [C]."""
    tags_C = torch.zeros(len(context.split.classes))
    tags_C[list(context.split.tags(image_id))] = 1.0
    return tags_C


class EpochChoice:
    """Scores the model on held-out tags after each epoch and remembers the best weights, across restarts too."""

    def __init__(
        self, context: StageContext, config: CamConfig, model: TagClassifier, ids: Sequence[str]
    ) -> None:
        self.context, self.config, self.model, self.ids = context, config, model, list(ids)
        self.folder: Path = context.out / "state"
        self.scores: dict[int, float] = {}
        if context.resume and (self.folder / "held_out.json").is_file():
            self.scores = {int(k): float(v) for k, v in read_json(self.folder / "held_out.json").items()}

    @property
    def active(self) -> bool:
        """Whether there are enough held-out images to choose by."""
        return len(self.ids) >= MIN_HELD_OUT

    def finished(self, epoch: int) -> None:
        """Score the weights as they are at the end of `epoch`; on a tie the later epoch wins."""
        if not self.active or epoch in self.scores:
            return
        score = self._score()
        best = score >= max(self.scores.values(), default=0.0)
        self.scores[epoch] = score
        if is_main():
            if best:
                save_state(self.folder / "best.pt", {"epoch": epoch, "model": self.model.state_dict()})
            write_json(self.folder / "held_out.json", {str(k): v for k, v in self.scores.items()})
        wait_for_all()
        self.context.metrics({"phase": "held-out", "epoch": epoch, "mean_average_precision": score})

    def restore_best(self) -> tuple[int, float] | None:
        """Load the best epoch's weights into the model; return it and its score, or None without a choice."""
        if not self.scores:
            return None
        best = load_state(self.folder / "best.pt")
        self.model.load_state_dict(best["model"])
        return int(best["epoch"]), self.scores[int(best["epoch"])]

    @torch.no_grad()
    def _score(self) -> float:
        self.model.eval()
        found: dict[str, NDArray[np.float32]] = {}
        for image_id in own_items(self.ids):
            try:
                pixels = load_image(self.context.split.image_path(image_id))
            except ImageError as error:
                self.context.failures.record(image_id, str(error))
                continue
            size = view_sizes(
                pixels.shape[0], pixels.shape[1], (1.0,), self.config.max_size, self.model.patch
            )[0]
            image = (
                torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(self.context.device).float() / 255.0
            )
            view = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
            with autocast(self.context.device, self.context.precision):
                output = self.model(view)
            logits = torch.stack([output.class_logits_BC[0], output.patch_logits_BC[0]])
            found[image_id] = logits.float().cpu().numpy()
        self.model.train()
        found = {image_id: row for part in gather(found) for image_id, row in part.items()}
        ids = [image_id for image_id in self.ids if image_id in found]
        tags = [tag_vector(self.context, image_id).numpy() for image_id in ids]
        both = np.stack([found[image_id] for image_id in ids])
        return float(np.mean([mean_average_precision(both[:, head], np.stack(tags)) for head in range(2)]))


def mean_average_precision(scores_NC: NDArray[np.float32], tags_NC: NDArray[np.float32]) -> float:
    """Mean over the classes that occur of the average precision of their ranking of the images, in [0, 1]."""
    values = []
    for scores, tags in zip(scores_NC.T, tags_NC.T, strict=True):
        ranked = tags[np.argsort(-scores, kind="stable")]
        if ranked.sum() > 0:
            precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
            values.append(float((precision * ranked).sum() / ranked.sum()))
    return float(np.mean(values)) if values else 0.0


def held_out_ids(ids: Sequence[str], fraction: float, seed: int) -> list[str]:
    """Return the held-out images, sorted; none if they would be too few to choose by."""
    count = round(len(ids) * fraction)
    if count < MIN_HELD_OUT:
        return []
    order = numpy_generator(seed, "held out").permutation(len(ids))[:count]
    return sorted(ids[i] for i in order)


def train_classifier(context: StageContext, config: CamConfig) -> tuple[TagClassifier, Counts]:
    """Train on the context's train split; resumable.

    Raises:
        TrainingDivergedError: a loss is not finite.
    """
    torch.manual_seed(derive_seed(context.seed, "fresh layers"))
    model = build_classifier(config, len(context.split.classes), config.backbone_source()).to(context.device)
    draw_per_image(model)
    if isinstance(model, MultiClassTokenClassifier) and isinstance(model.body, HybridBody):
        model.body.backbone.freeze_through(
            config.hybrid.freeze_through_stride, "cam.hybrid.freeze_through_stride"
        )
    held_out = held_out_ids(context.split.ids, config.val_fraction, context.seed)
    data = TagData(context, config, sorted(set(context.split.ids) - set(held_out)))
    choice = EpochChoice(context, config, model, held_out)

    def batch_losses(batch: TagBatch, number: int) -> dict[str, Tensor]:
        with autocast(context.device, context.precision):
            output = model(moved(batch.images, context.device))
        return tag_losses(output, moved(batch.tags, context.device))

    steps = config.epochs * steps_per_epoch(len(data.ids), config.batch_size, config.grad_accum_steps)
    with torch_threads(config.num_threads):
        trainer = Trainer(
            context=context,
            model=model,
            optimizer=make_optimizer(model, config),
            schedule=build_schedule(
                "cosine",
                steps,
                config.warmup_fraction,
                warmup_factor=config.warmup_factor,
                min_lr_factor=config.min_lr_factor,
                warmup_prefix=config.warmup_prefix,
            ),
            items=data.ids,
            load=data.load,
            losses=batch_losses,
            settings=FitSettings(
                config.epochs, config.batch_size, config.grad_accum_steps, label="classifier"
            ),
            epoch_end=choice.finished,
        )
        trainer.fit()
    counts: Counts = {"training_images": len(data.ids), "held_out_images": len(held_out)}
    best = choice.restore_best()
    if best is not None:
        counts |= {"best_epoch": best[0], "held_out_map": round(best[1], 4)}
    return model.eval(), counts


def make_optimizer(model: TagClassifier, config: CamConfig) -> torch.optim.Optimizer:
    """AdamW: the backbone at its own rate; biases, norms, tokens and positions without weight decay."""
    backbone = model.backbone
    groups = param_groups(
        model,
        lr=config.lr,
        weight_decay=config.weight_decay,
        module_lrs={} if backbone is None else {backbone: config.lr * config.backbone_lr_factor},
        no_decay=model.tokens_and_positions,
    )
    return build_optimizer("adamw", groups)
