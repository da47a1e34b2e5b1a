"""Batches loaded ahead: the same weights with any number of processes, over kills; failures and errors come along."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.errors import EnvironmentFault, ImageError, InputError, PreemptedError
from stages.core.spec import FailureLog
from stages.core.training import loading
from stages.core.training.loading import batches
from tests.test_training_loop import flat, trainer

WANTED = [([str(i)], i // 4) for i in range(8)]
Load = Callable[[Sequence[str], int], tuple[list[str], Tensor]]


def plain(ids: Sequence[str], epoch: int) -> tuple[list[str], Tensor]:
    return list(ids), torch.full((3,), float(ids[0])) + epoch


def loaded(load: Load, workers: int, failures: FailureLog | None = None) -> list[Any]:
    with batches(load, WANTED, workers, failures or FailureLog()) as found:
        return [(ids, values.tolist()) for ids, values in found]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_batches__same_order_with_any_number(
    workers: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "shared_memory_suffices", lambda: shared)

    def uneven(ids: Sequence[str], epoch: int) -> tuple[list[str], Tensor]:
        time.sleep(0.02 if ids[0] == "2" else 0.0)
        return plain(ids, epoch)

    assert loaded(uneven, workers) == loaded(plain, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches__failures_come_back_with_their_batch(workers: int) -> None:
    failures = FailureLog()

    def load(ids: Sequence[str], epoch: int) -> tuple[list[str], Tensor]:
        if ids[0] in "25":
            failures.record(ids[0], "truncated")
        return plain(ids, epoch)

    with batches(load, WANTED, workers, failures) as found:
        for _ in range(3):
            next(found)
        assert failures.entries == {"2": "truncated"}
        next(found), next(found), next(found)
        assert sorted(failures.entries) == ["2", "5"]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches__errors_are_raised_as_they_were(workers: int) -> None:
    def load(ids: Sequence[str], epoch: int) -> tuple[list[str], Tensor]:
        if ids[0] == "3":
            raise InputError("none can be read", where="toy", hint="look at them")
        return plain(ids, epoch)

    with batches(load, WANTED, workers, FailureLog()) as found:
        assert [next(found)[0] for _ in range(3)] == [["0"], ["1"], ["2"]]
        with pytest.raises(InputError, match=r"^toy: none can be read\n  hint: look at them$"):
            next(found)


def children() -> set[int]:
    return {int(i) for i in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_batches__processes_outlast_a_signal_and_end_with_the_block() -> None:
    before = children()
    with batches(plain, WANTED, 2, FailureLog()) as found:
        next(found)
        own = children() - before
        assert len(own) == 2
        for process in own:
            os.kill(process, signal.SIGTERM)  # reaches the whole group when a job is preempted
            os.kill(process, signal.SIGINT)
        assert len(list(found)) == len(WANTED) - 1
    assert not own & children()


def test_batches__a_killed_process_is_an_environment_fault() -> None:
    def load_and_kill() -> None:
        before = children()
        with batches(plain, WANTED * 50, 1, FailureLog()) as found:
            next(found)
            os.kill((children() - before).pop(), signal.SIGKILL)
            for _ in found:
                time.sleep(0.01)

    with pytest.raises(EnvironmentFault, match="a process that loads images ended"):
        load_and_kill()


def test_shared_memory_suffices__not_in_a_small_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loading, "SHARED_MEMORY", tmp_path / "absent")
    assert not loading.shared_memory_suffices()
    monkeypatch.setattr(loading, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(loading, "LEAST_SHARED_BYTES", 0)
    monkeypatch.setattr("resource.getrlimit", lambda kind: (256, 256))
    assert not loading.shared_memory_suffices()
    monkeypatch.setattr("resource.getrlimit", lambda kind: (4096, 4096))
    assert loading.shared_memory_suffices()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_fit__byte_identical_with_any_number_of_loaders_and_over_a_stop(
    tmp_path: Path, accumulate: int
) -> None:
    found = []
    for name, loaders, stop_after in (("none", 0, None), ("one", 1, None), ("two", 2, 3)):
        run = trainer(tmp_path / name, stop_after, grad_accum_steps=accumulate)
        run.context = replace(run.context, loaders=loaders)
        if stop_after is not None:
            with pytest.raises(PreemptedError):
                run.fit()
            run = trainer(tmp_path / name, resume=True, grad_accum_steps=accumulate)
            run.context = replace(run.context, loaders=loaders)
        found.append(flat(run.fit()))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_fit__lines_of_metrics_say_where_the_time_goes(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    run = trainer(tmp_path, clip_grad_norm=None)
    run.context = replace(run.context, log_every=4, metrics_fn=lambda values: lines.append(dict(values)))
    load = run.load

    def slow(ids: list[str], epoch: int) -> Tensor:
        time.sleep(0.02)
        return load(ids, epoch)

    run.load = slow
    run.fit()
    assert [line["step"] for line in lines] == [0, 4, 8]
    for line in lines:
        assert 0.02 <= line["data_s"] <= line["step_s"]
        assert line["images_per_second"] == pytest.approx(3 / line["step_s"], rel=0.01)
        assert line["lr"] == pytest.approx(0.01 * line["lr_factor"])
        assert line["grad_norm"] > 0


def test_batches__images_that_fail_have_the_same_stand_in(tmp_path: Path) -> None:
    """What stands in for an image does not depend on which process met it first."""
    from stages.core.training.readable_images import ReadableImages
    from tests.fake_split import FakeSplit, weak

    found = []
    for workers in (0, 1, 2):
        failures = FailureLog()
        images = ReadableImages(weak(FakeSplit()), [str(i) for i in range(8)], failures)

        def make(image_id: str) -> str:
            if image_id in "36":
                raise ImageError("truncated", where=image_id)
            return image_id

        def load(ids: Sequence[str], epoch: int, images: Any = images) -> tuple[list[str], Tensor]:
            return [images.first(ids[0], make)[0]], torch.zeros(1)

        found.append((loaded(load, workers, failures), failures.as_list()))
    assert found[0] == found[1] == found[2]
