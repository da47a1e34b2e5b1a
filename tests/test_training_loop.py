"""The training loop: resumes bit-exactly, accumulates exactly, stops on a bad loss, keeps an average."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.core.errors import OutputExistsError, PreemptedError, SchemaError, TrainingDivergedError
from stages.core.runtime.seeding import numpy_generator
from stages.core.spec import StageContext
from stages.core.training.ema import ModelEma
from stages.core.training.loop import (
    FitSettings,
    Trainer,
    epoch_batches,
    micro_batches,
)
from stages.core.training.schedule import warmup_cosine, warmup_steps
from stages.core.weights.checkpoints import (
    load_state,
    load_tensors,
    load_weights,
    read_metadata,
    save_weights,
)
from tests.fake_split import FakeSplit, weak

ITEMS = tuple("abcdefghij")


def trainer(
    out: Path, stop_after: int | None = None, resume: bool = False, precision: str = "fp32", **changes: Any
) -> Trainer[Tensor]:
    calls = iter(range(10_000))

    def interrupted() -> None:
        if stop_after is not None and next(calls) + 1 == stop_after:
            raise PreemptedError("stop")

    context = StageContext(
        split=weak(FakeSplit()),
        run=out,
        out=out,
        resume=resume,
        interrupted_fn=interrupted,
        seed=3,
        precision=precision,  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def load(ids: list[str], epoch: int) -> Tensor:
        rows = [numpy_generator(3, "augment", epoch, i).standard_normal(4) for i in ids]
        return torch.from_numpy(np.array(rows, dtype=np.float32))

    def step(batch: Tensor, number: int) -> dict[str, Tensor]:
        return {"square": model(batch).square().mean(), "_seen": torch.tensor(float(len(batch)))}

    settings = replace(FitSettings(epochs=3, batch_size=3, ema_decay=0.9), **changes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return Trainer(context, model, optimizer, warmup_cosine(9, 2), ITEMS, load, step, settings)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


@pytest.mark.parametrize(("accumulate", "stop_after"), [(1, 1), (1, 3), (1, 5), (1, 8), (3, 1), (3, 2)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fit__resume_is_bit_exact(tmp_path: Path, stop_after: int, accumulate: int, precision: str) -> None:
    whole = trainer(tmp_path / "whole", precision=precision, grad_accum_steps=accumulate).fit()
    first = trainer(tmp_path / "cut", stop_after, precision=precision, grad_accum_steps=accumulate)
    first.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=precision == "fp16")
    with pytest.raises(PreemptedError):
        first.fit()
    second = trainer(tmp_path / "cut", resume=True, precision=precision, grad_accum_steps=accumulate)
    assert torch.equal(flat(second.fit()), flat(whole))
    assert second.done == second.total_steps == (9 if accumulate == 1 else 3)
    assert second.scaler.get_scale() == (8.0 if precision == "fp16" else 1.0)


def test_fit__scaled_losses_train_like_plain_ones(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", clip_grad_norm=0.1).fit()
    scaled = trainer(tmp_path / "scaled", precision="fp16", clip_grad_norm=0.1).fit()
    torch.testing.assert_close(flat(scaled), flat(plain), rtol=1e-5, atol=1e-6)


def test_fit__accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    def linear(out: Path, batch: int, accumulate: int) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        context = StageContext(split=weak(FakeSplit()), run=out, out=out)

        def load(ids: list[str], epoch: int) -> Tensor:
            return torch.tensor([[float(ord(i)) / 100, epoch, 1, 0] for i in ids])

        settings = FitSettings(epochs=2, batch_size=batch, grad_accum_steps=accumulate)
        fitted = Trainer(
            context, model, torch.optim.SGD(model.parameters(), lr=0.1), lambda step: 1.0, ITEMS[:8], load,
            lambda b, s: {"loss": model.forward(b).square().mean()}, settings,
        ).fit()  # fmt: skip
        return flat(fitted)

    torch.testing.assert_close(
        linear(tmp_path / "a", 8, 1), linear(tmp_path / "b", 2, 4), rtol=1e-6, atol=1e-6
    )


def test_fit__bad_loss_stops_with_step_and_images(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    good = run.losses

    def step(batch: Tensor, number: int) -> dict[str, Tensor]:
        losses = good(batch, number)
        return {"square": losses["square"] * (float("nan") if number == 4 else 1.0)}

    run.losses = step
    with pytest.raises(TrainingDivergedError, match="at step 4") as caught:
        run.fit()
    assert "square" in str(caught.value)
    assert run.state_path.is_file()
    assert load_state(run.state_path)["done"] == 4


def test_fit__bad_loss_leaves_the_model_as_before_the_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    context = StageContext(split=weak(FakeSplit()), run=tmp_path, out=tmp_path)
    before: list[Tensor] = []

    def step(batch: Tensor, number: int) -> dict[str, Tensor]:
        before.append(flat(model))
        return {"loss": model(batch).square().mean()}

    def load(ids: list[str], epoch: int) -> Tensor:
        worst = math.nan if len(before) == 2 else 1.0
        return torch.tensor([[float(ord(i)), worst] for i in ids])

    run = Trainer(
        context, model, torch.optim.SGD(model.parameters(), lr=0.1), lambda step: 1.0, ITEMS[:8], load, step,
        FitSettings(epochs=3, batch_size=4),
    )  # fmt: skip
    with pytest.raises(TrainingDivergedError, match="at step 2"):
        run.fit()
    assert torch.equal(flat(model), before[-1]), "running statistics, too"
    assert all(bool(value.isfinite().all()) for value in load_state(run.state_path)["model"].values())


def test_fit__bad_loss_names_the_images_that_were_used(tmp_path: Path) -> None:
    class Batch(NamedTuple):
        ids: list[str]

    model = nn.Linear(1, 1)
    context = StageContext(split=weak(FakeSplit()), run=tmp_path, out=tmp_path)
    run = Trainer(
        context, model, torch.optim.SGD(model.parameters(), lr=0.1), lambda step: 1.0, ["broken"],
        lambda ids, epoch: Batch(["substitute"]), lambda batch, step: {"loss": model.weight.sum() * math.inf},
        FitSettings(epochs=1, batch_size=1),
    )  # fmt: skip
    with pytest.raises(TrainingDivergedError, match=r"images \['substitute'\]"):
        run.fit()


def test_fit__weights_that_the_last_step_breaks(tmp_path: Path) -> None:
    run = trainer(tmp_path)

    def break_weights(epoch: int) -> None:
        if epoch == 2:
            next(run.model.parameters()).data.fill_(math.inf)

    run.epoch_end = break_weights
    with pytest.raises(TrainingDivergedError, match="after the last step"):
        run.fit()


def test_fit__no_resume_in_another_precision(tmp_path: Path) -> None:
    with pytest.raises(PreemptedError):
        trainer(tmp_path, 3).fit()
    with pytest.raises(OutputExistsError, match="--precision fp32"):
        trainer(tmp_path, resume=True, precision="fp16").fit()


def test_fit__no_resume_of_another_network(tmp_path: Path) -> None:
    with pytest.raises(PreemptedError):
        trainer(tmp_path, 3).fit()
    changed = trainer(tmp_path, resume=True)
    changed.model.add_module("extra", nn.Linear(1, 1))  # as if another version had trained it
    with pytest.raises(OutputExistsError, match=r"another network(.|\n)*--overwrite"):
        changed.fit()


@pytest.mark.parametrize("images", range(1, 12))
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("passes", [1, 2, 4])
def test_micro_batches__every_image_once(images: int, world: int, passes: int) -> None:
    ids = list(ascii_lowercase[:images])
    cut = [micro_batches(ids, passes, rank, world) for rank in range(world)]
    assert sorted(i for own in cut for part in own for i in part) == ids
    assert len({len(own) for own in cut}) == 1, "every process takes part in every pass"
    assert len(cut[0]) <= passes
    assert any(own[-1] for own in cut), "no pass of which nothing counts"
    assert max(len(part) for own in cut for part in own) <= math.ceil(math.ceil(images / world) / passes)


def test_epoch_batches__each_item_once_and_epochs_differ() -> None:
    batches = epoch_batches(ITEMS, 5, seed=0, epoch=0)
    assert sorted(i for b in batches for i in b) == sorted(ITEMS)
    assert batches != epoch_batches(ITEMS, 5, seed=0, epoch=1)
    assert batches == epoch_batches(ITEMS, 5, seed=0, epoch=0)
    assert epoch_batches(ITEMS[:2], 5, seed=0, epoch=0) != [], "fewer items than a batch still train"


def test_schedules__values() -> None:
    cosine = warmup_cosine(10, warmup=2, warmup_factor=0.1, final=0.0)
    assert [round(cosine(s), 4) for s in (0, 1, 2, 6, 10)] == [0.1, 0.55, 1.0, 0.5, 0.0]
    steps = warmup_steps([4, 8], gamma=0.1, warmup=2, warmup_factor=0.5)
    assert [round(steps(s), 4) for s in (0, 1, 2, 4, 8)] == [0.5, 0.75, 1.0, 0.1, 0.01]


def test_model_ema__follows_the_recursion() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema = ModelEma(model, decay=0.5)
    nn.init.constant_(model.weight, 1.0)
    ema.update(model)  # decay min(.5, 2/11)
    assert next(ema.module.parameters()).item() == pytest.approx(9 / 11)


def test_save_weights__same_bytes_and_metadata(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    for name in ("a.safetensors", "b.safetensors"):
        save_weights(tmp_path / name, model, {"classes": ["x"], "kind": "k"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert read_metadata(tmp_path / "a.safetensors") == {"classes": ["x"], "kind": "k"}
    other = nn.Linear(2, 2)
    load_weights(tmp_path / "a.safetensors", other, {"classes": ["x"]})
    assert torch.equal(other.weight, model.weight)


def test_load_weights__mismatches_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, nn.Linear(2, 2), {"classes": ["x"]})
    with pytest.raises(SchemaError, match="classes"):
        load_weights(path, nn.Linear(2, 2), {"classes": ["y"]})
    with pytest.raises(SchemaError, match="weight is"):
        load_tensors(path, nn.Linear(3, 2))
    with pytest.raises(SchemaError, match="lacks"):
        load_tensors(path, nn.Sequential(nn.Linear(2, 2)))
    path.write_bytes(b"junk")
    with pytest.raises(SchemaError, match="not a weaksam checkpoint"):
        read_metadata(path)
