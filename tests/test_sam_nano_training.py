"""The programme that makes sam-nano: losses, resumable training, exported weights, recall on drawn scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sam_nano_training import train
from sam_nano_training.losses import pairwise_iou, pairwise_losses, promptable_loss
from sam_nano_training.recall import GridRule, held_out_scenes, measure_recall, tight_boxes
from sam_nano_training.train import Progress, Trainer, TrainingPlan, command_of, rate_factor
from stages.core.segmenters.loading import load_segmenter
from stages.core.segmenters.sam_checkpoints import load_nano
from stages.core.segmenters.sam_nano import (
    ARCHITECTURE,
    build_sam_nano,
)


def test_pairwise_losses__equal_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 50, generator=generator)
    targets = (torch.rand(2, 3, 50, generator=generator) > 0.5).float()
    bands = (torch.rand(2, 3, 50, generator=generator) > 0.7).float()
    found = pairwise_losses(logits, targets, bands)
    for p, m, t in np.ndindex(2, 4, 3):
        y, x = targets[p, t], logits[p, m]
        right = torch.where(y > 0, x.sigmoid(), 1 - x.sigmoid())
        focal = -((1 - right) ** 2) * right.log()
        dice = 1 - (2 * (x.sigmoid() * y).sum() + 1) / (x.sigmoid().sum() + y.sum() + 1)
        band = (focal * bands[p, t]).sum() / bands[p, t].sum()
        assert float(found[p, m, t]) == pytest.approx(float(20 * focal.mean() + 4 * band + dice), rel=1e-4)


def test_pairwise_iou__counts_pixels() -> None:
    logits = torch.tensor([[[1.0, 1.0, -1.0, -1.0]]])
    targets = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.6, 1.0, 0.4], [0.0, 0.0, 0.0, 0.0]]])
    assert pairwise_iou(logits, targets)[0, 0].tolist() == pytest.approx([1 / 2, 1 / 3, 0])


def test_promptable_loss__only_the_best_mask_learns_an_answer() -> None:
    target = torch.zeros(1, 3, 8, 8)
    target[0, 0, :4] = 1
    logits = torch.zeros(1, 4, 8, 8)
    logits[0, 2] = 4 * (2 * target[0, 0] - 1)
    logits.requires_grad_()
    valid = torch.tensor([[True, False, False]])
    loss = promptable_loss(
        logits, torch.zeros(1, 4), target, torch.ones_like(target), valid, torch.tensor([False])
    )
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    moved = logits.grad[0].abs().sum(dim=(1, 2)) > 0
    assert moved.tolist() == [True, False, True, False]
    assert loss.best_iou == pytest.approx(1)


def test_promptable_loss__the_iou_head_learns_the_best_answer() -> None:
    targets = torch.zeros(1, 3, 8, 8)
    targets[0, 0, :4], targets[0, 1, :2] = 1, 1
    logits = torch.full((1, 4, 8, 8), -5.0)
    logits[0, 1, :4], logits[0, 2, :2] = 5, 5
    valid, bands = torch.tensor([[True, True, False]]), torch.ones_like(targets)
    exact = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    assert promptable_loss(logits, exact, targets, bands, valid, torch.tensor([False])).iou_error == 0


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(Progress(0, 0), 1 / 50), (Progress(49, 0), 1.0), (Progress(100, 30), 0.5), (Progress(100, 90), 0.0)],
)
def test_rate_factor__warms_up_and_ends_at_zero(progress: Progress, factor: float) -> None:
    assert rate_factor(progress, TrainingPlan(minutes=1)) == pytest.approx(factor, abs=1e-9)


@pytest.fixture
def small_trainer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds trainers from random weights: the ImageNet package is an optional extra."""
    state = build_sam_nano().image_encoder.trunk.state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    weights = {name: value for name, value in state.items() if name not in counters}
    monkeypatch.setattr(train, "_imagenet_state", lambda: weights)

    def build(out: Path, steps: int) -> Trainer:
        plan = TrainingPlan(minutes=1, images=1, prompts=2, limit_steps=steps)
        return Trainer(plan, out, rank=0, world=1)

    return build


def test_trainer__a_resumed_run_equals_an_unbroken_one(tmp_path: Path, small_trainer: Any) -> None:
    whole = small_trainer(tmp_path, 2)
    first_token = whole.sam.mask_decoder.iou_token.weight.detach().clone()
    whole.step()
    whole.save()
    whole.step()
    assert not torch.equal(whole.sam.mask_decoder.iou_token.weight, first_token)
    resumed = small_trainer(tmp_path, 2)
    resumed.resume()
    assert resumed.progress.step == 1
    resumed.step()
    for name, value in whole.sam.state_dict().items():
        assert torch.equal(resumed.sam.state_dict()[name], value), name
    for name, value in whole.average.state_dict().items():
        assert torch.equal(resumed.average.state_dict()[name], value), name


def test_trainer__exports_weights_that_load(tmp_path: Path, small_trainer: Any) -> None:
    trainer = small_trainer(tmp_path, 1)
    trainer.run()
    path = tmp_path / "sam_nano.safetensors"
    loaded: Any = load_nano(path)
    average = trainer.average.state_dict()["mask_decoder.iou_token.weight"]
    torch.testing.assert_close(loaded.mask_decoder.iou_token.weight, average, rtol=1e-3, atol=1e-3)
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    assert facts["architecture"] == ARCHITECTURE
    assert json.loads(facts["plan"])["seed"] == 0
    assert facts["steps"] == "1"


def test_tight_boxes__are_half_open() -> None:
    masks = torch.zeros(2, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:11] = True
    assert tight_boxes(masks).tolist() == [[3, 2, 11, 5], [0, 0, 0, 0]]


@pytest.mark.parametrize("name", ["sam-nano", "sam-nano-photo"])
def test_shipped_weights__find_drawn_objects(name: str) -> None:
    segmenter = load_segmenter(name, None, "cpu")
    found = measure_recall(segmenter, held_out_scenes(3), GridRule(side=8, least_iou=0.1))
    assert found["recall_0.5"] >= 0.5
    assert found["boxes_per_image"] <= 150


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, "--minutes 60 --seed 0"),
        ({"seed": 7, "limit_steps": 2800}, "--minutes 60 --seed 7 --steps 2800"),
        (
            {"head_rate": 7e-4, "init": "a.safetensors"},
            "--minutes 60 --seed 0 --head-rate 0.0007 --init a.safetensors",
        ),
    ],
)
def test_command_of__says_what_is_not_the_default(changes: dict[str, Any], flags: str) -> None:
    assert command_of(TrainingPlan(minutes=60, **changes)).endswith(f"sam_nano_training.train {flags}")


def test_export_weights__names_the_first_weights_without_their_folder(tmp_path: Path) -> None:
    plan = TrainingPlan(minutes=1, init=str(tmp_path / "first.safetensors"))
    train.export_weights(build_sam_nano(32, 64), tmp_path / "w.safetensors", plan, Progress())
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        facts = file.metadata()
    assert facts["command"].endswith("--init first.safetensors")
    assert str(tmp_path) not in json.dumps(facts)
