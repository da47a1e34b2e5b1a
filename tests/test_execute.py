"""A stage run from inputs to manifest: guards, staleness, resume, failures, signals."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from stages.core.artifacts.manifest import read_manifest
from stages.core.config import StageConfig
from stages.core.datasets import catalog
from stages.core.errors import (
    EnvironmentFault,
    MissingInputError,
    OutputExistsError,
    PreemptedError,
    StaleInputError,
    TooManyFailuresError,
    UsageError,
)
from stages.core.runtime import request as request_module
from stages.core.runtime.execute import execute
from stages.core.runtime.request import Request, failure_limit, join_machine
from stages.core.spec import Counts, InputSpec, OutputSpec, Plan, StageContext, StageSpec
from tests.fake_split import FakeSplit


class ToyConfig(StageConfig):
    word: str = Field("x", description="Written to the output.")


class FirstStage:
    spec = StageSpec("cam", "", (), (OutputSpec("cams.txt", "cams"),), uses_device=True)
    runs: int = 0
    bad: tuple[str, ...] = ()
    stop: bool = False

    def plan(self, config: Any, context: StageContext) -> Plan:
        return Plan(len(context.split.ids))

    def run(self, config: Any, context: StageContext) -> Counts:
        self.runs += 1
        for image_id in self.bad:
            context.failures.record(image_id, "broken")
        if self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
            context.interrupted()
        (context.out / self.spec.outputs[0].file_name).write_text(config.word)
        return {"words": 1}


class SecondStage(FirstStage):
    spec = StageSpec(
        "prompt",
        "",
        (InputSpec("cams", "cam", "cams.txt"),),
        (OutputSpec("prompts.txt", "prompts"),),
        uses_device=False,
    )


@pytest.fixture(autouse=True)
def fake_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "open_split", lambda name, root, classes=(): FakeSplit(name=name))


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request(split="toy_train", run=tmp_path / "run", data=tmp_path, show_progress=False)


def test_execute__manifest_last_with_hashes(request_: Request) -> None:
    outcome = execute(FirstStage(), ToyConfig(), request_)
    manifest = read_manifest(outcome.out)
    assert outcome.status == "done"
    assert manifest.counts == {"images": 3, "words": 1, "failed": 0}
    assert len(manifest.outputs["cams.txt"]) == 64
    assert manifest.config == {"word": "x"}
    assert (manifest.environment["precision"], manifest.environment["deterministic"]) == ("fp32", "true")
    assert not (outcome.out / "state").exists()
    assert "cam:" in (outcome.out / "resolved.yaml").read_text()


def test_execute__existing_output_needs_a_decision(request_: Request) -> None:
    stage = FirstStage()
    execute(stage, ToyConfig(), request_)
    with pytest.raises(OutputExistsError, match="--resume") as caught:
        execute(stage, ToyConfig(), request_)
    assert caught.value.exit_code == 4
    assert execute(stage, ToyConfig(), replace(request_, resume=True)).status == "already done"
    assert stage.runs == 1
    with pytest.raises(OutputExistsError, match=r"other settings \(word x -> y\)"):
        execute(stage, ToyConfig(word="y"), replace(request_, resume=True))
    both = replace(request_, resume=True, overwrite=True)
    assert execute(stage, ToyConfig(word="y"), both).status == "done"
    assert execute(stage, ToyConfig(word="y"), both).status == "already done"
    assert stage.runs == 2


def test_execute__foreign_folder_is_left_alone(request_: Request, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(OutputExistsError, match="something else"):
        execute(FirstStage(), ToyConfig(), replace(request_, out=out))
    execute(FirstStage(), ToyConfig(), replace(request_, out=out, overwrite=True))
    assert (out / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("folder", ["viz", "state", "parts"])
def test_execute__foreign_subfolder_is_not_replaced(request_: Request, tmp_path: Path, folder: str) -> None:
    out = tmp_path / "mine"
    (out / folder).mkdir(parents=True)
    (out / folder / "keep.jpg").write_text("precious")
    with pytest.raises(OutputExistsError, match=f"holds {folder}, .* no run made"):
        execute(FirstStage(), ToyConfig(), replace(request_, out=out, overwrite=True))
    assert (out / folder / "keep.jpg").read_text() == "precious"


def test_execute__pictures_of_a_run_are_replaced_with_it(request_: Request) -> None:
    out = execute(FirstStage(), ToyConfig(), request_).out
    (out / "viz").mkdir()
    (out / "viz" / "old.jpg").write_text("old")
    (out / "manifest.json").unlink()  # a run that was cut off while it was replaced
    execute(FirstStage(), ToyConfig(word="new"), replace(request_, overwrite=True))
    assert not (out / "viz").exists()


def test_execute__a_plan_that_fails_costs_nothing(request_: Request) -> None:
    class Choosy(FirstStage):
        def plan(self, config: Any, context: StageContext) -> Plan:
            raise UsageError("no such model")

    out = execute(FirstStage(), ToyConfig(), request_).out
    with pytest.raises(UsageError):
        execute(Choosy(), ToyConfig(word="new"), replace(request_, overwrite=True))
    assert (out / "cams.txt").read_text() == "x"
    assert (out / "manifest.json").is_file()


def test_execute__dry_run_writes_nothing(request_: Request) -> None:
    outcome = execute(FirstStage(), ToyConfig(), replace(request_, dry_run=True))
    assert outcome.status == "planned"
    assert not request_.run.exists()


def test_execute__input_missing(request_: Request) -> None:
    with pytest.raises(MissingInputError, match="weaksam cam"):
        execute(SecondStage(), ToyConfig(), request_)


def test_execute__input_changed_after_its_manifest(request_: Request) -> None:
    out = execute(FirstStage(), ToyConfig(), request_).out
    (out / "cams.txt").write_text("tampered")
    with pytest.raises(StaleInputError, match="differs from what its manifest recorded"):
        execute(SecondStage(), ToyConfig(), request_)


def test_join_machine__default_of_workers_follows_from_what_the_stage_uses(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with a GPU, a stage that does not use it takes all cores."""
    monkeypatch.setattr(request_module, "resolve_device", lambda name: "cuda:0" if name == "auto" else name)
    monkeypatch.setattr(request_module, "available_cores", lambda: 7)
    auto = replace(request_, device="auto", workers=None)
    on_gpu, on_cpu = (join_machine(auto, stage.spec) for stage in (FirstStage, SecondStage))
    assert (on_gpu.device, on_gpu.workers, on_gpu.deterministic) == ("cuda:0", 0, False)
    assert (on_cpu.device, on_cpu.precision, on_cpu.workers, on_cpu.deterministic) == ("cpu", "fp32", 7, True)
    assert join_machine(replace(auto, deterministic=True), FirstStage.spec).deterministic
    assert join_machine(replace(auto, device="cpu"), FirstStage.spec).workers == 7
    assert join_machine(replace(auto, workers=2), SecondStage.spec).workers == 2


def test_execute__input_unfinished(request_: Request) -> None:
    out = execute(FirstStage(), ToyConfig(), request_).out
    (out / "manifest.json").unlink()
    with pytest.raises(MissingInputError, match="not finished"):
        execute(SecondStage(), ToyConfig(), request_)


def test_execute__input_made_from_an_older_upstream(request_: Request) -> None:
    class ThirdStage(FirstStage):
        spec = StageSpec(
            "propose",
            "",
            (InputSpec("prompts", "prompt", "prompts.txt"),),
            (OutputSpec("p.txt", "proposals"),),
            uses_device=True,
        )

    execute(FirstStage(), ToyConfig(), request_)
    execute(SecondStage(), ToyConfig(), request_)
    execute(FirstStage(), ToyConfig(word="new"), replace(request_, overwrite=True))
    with pytest.raises(StaleInputError, match="made from another cams"):
        execute(ThirdStage(), ToyConfig(), request_)


def test_execute__checkpoint_given_for_a_train_split_is_applied(request_: Request, tmp_path: Path) -> None:
    class Learner(FirstStage):
        spec = StageSpec(
            "cam",
            "",
            (InputSpec("checkpoint", "cam", "w.bin", "train", ("test",)),),
            (OutputSpec("cams.txt", "cams"), OutputSpec("w.bin", "weights", ("train",))),
            uses_device=True,
        )
        learnt: int = 0

        def run(self, config: Any, context: StageContext) -> Counts:
            if context.trains:
                self.learnt += 1
                (context.out / "w.bin").write_text("weights")
            return super().run(config, context)

    stage = Learner()
    (tmp_path / "given.bin").write_text("weights")
    given = replace(request_, overrides={"checkpoint": tmp_path / "given.bin"})
    outcome = execute(stage, ToyConfig(), given)
    assert (outcome.status, stage.learnt) == ("done", 0)
    assert list(read_manifest(outcome.out).outputs) == ["cams.txt"]
    assert execute(stage, ToyConfig(), replace(request_, overwrite=True)).status == "done"
    assert stage.learnt == 1


def test_execute__input_made_of_other_tags(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(FirstStage(), ToyConfig(), request_)
    monkeypatch.setattr(
        catalog, "open_split", lambda name, root, classes=(): FakeSplit(name=name, fingerprint="g")
    )
    with pytest.raises(StaleInputError, match="other images, tags or classes") as caught:
        execute(SecondStage(), ToyConfig(), request_)
    assert "weaksam cam --split toy_train --overwrite" in str(caught.value)


def test_execute__unreadable_allowance_of_failures_costs_nothing(request_: Request) -> None:
    stage = FirstStage()
    with pytest.raises(UsageError, match="foo"):
        execute(stage, ToyConfig(), replace(request_, max_failures="foo"))
    assert stage.runs == 0


def test_execute__explicit_input_from_elsewhere(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "cams.txt").write_text("mine")
    outcome = execute(
        SecondStage(), ToyConfig(), replace(request_, overrides={"cams": tmp_path / "cams.txt"})
    )
    assert read_manifest(outcome.out).inputs["cams"].path == "cams.txt"
    with pytest.raises(UsageError, match="reads no pgt"):
        execute(SecondStage(), ToyConfig(), replace(request_, overrides={"pgt": tmp_path / "cams.txt"}))


def test_execute__failures_are_counted_named_and_limited(request_: Request) -> None:
    stage = FirstStage()
    stage.bad = ("b",)
    with pytest.raises(TooManyFailuresError, match="b: broken") as caught:
        execute(stage, ToyConfig(), replace(request_, max_failures="0"))
    assert caught.value.exit_code == 6
    manifest = read_manifest(request_.run / "cam" / "toy_train")
    assert manifest.failures == [{"id": "b", "reason": "broken"}], "the run finished all the same"
    assert execute(stage, ToyConfig(), replace(request_, max_failures="40%", overwrite=True)).status == "done"


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("7", 7), ("5%", 10), ("0%", 0), ("100%", 200)])
def test_failure_limit__count_or_share(text: str, expected: int) -> None:
    assert failure_limit(text, 200) == expected


@pytest.mark.parametrize("text", ["many", "-1", "%"])
def test_failure_limit__malformed(text: str) -> None:
    with pytest.raises(UsageError):
        failure_limit(text, 200)


def test_execute__sigterm_leaves_a_resumable_folder(request_: Request) -> None:
    stage = FirstStage()
    stage.stop = True
    with pytest.raises(PreemptedError) as caught:
        execute(stage, ToyConfig(), request_)
    assert caught.value.exit_code == 75
    out = request_.run / "cam" / "toy_train"
    assert json.loads((out / "state" / "run.json").read_text())["config"] == {"word": "x"}
    assert not (out / "manifest.json").exists()
    with pytest.raises(OutputExistsError, match="unfinished"):
        execute(stage, ToyConfig(), request_)
    stage.stop = False
    assert execute(stage, ToyConfig(), replace(request_, resume=True)).status == "done"


def test_execute__a_file_where_the_run_folder_goes(request_: Request, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(EnvironmentFault, match="there is a file") as caught:
        execute(FirstStage(), ToyConfig(), replace(request_, run=blocked))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_execute__unwritable_output(request_: Request, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(EnvironmentFault, match="cannot write") as caught:
        execute(FirstStage(), ToyConfig(), request_)
    assert os.strerror(number) in str(caught.value)
    assert caught.value.hint


def test_execute__sharding_a_training_stage(request_: Request) -> None:
    with pytest.raises(UsageError, match="cannot be sharded"):
        execute(FirstStage(), ToyConfig(), replace(request_, shard=(0, 2)))


def test_execute__limit_takes_the_first_ids(request_: Request) -> None:
    outcome = execute(FirstStage(), ToyConfig(), replace(request_, limit=2))
    assert outcome.manifest is not None
    assert outcome.manifest.counts["images"] == 2
