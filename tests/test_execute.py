"""A stage run from inputs to manifest: guards, staleness, resume, failures, signals."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from stages.core.artifacts.files import content_sha256
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
from stages.core.runtime.interrupts import InterruptFlag, catch_interrupts, stop_here
from stages.core.runtime.request import Request, failure_limit, join_machine
from stages.core.settings import SegmenterSettings
from stages.core.spec import Counts, InputSpec, OutputSpec, Plan, StageContext, StageSpec
from stages.wsis.config import WsisConfig
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


class SegmentingConfig(SegmenterSettings, ToyConfig):
    pass


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
    assert (on_gpu.loaders, on_cpu.loaders) == (6, 6)
    given = join_machine(replace(auto, workers=2), SecondStage.spec)
    assert (given.workers, given.loaders) == (2, 2)


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


def test_execute__weights_are_inputs(request_: Request, tmp_path: Path) -> None:
    weights = tmp_path / "sam.pth"
    weights.write_bytes(b"one")
    stage, config = FirstStage(), SegmentingConfig(segmenter_weights=str(weights))
    record = read_manifest(execute(stage, config, request_).out).inputs["segmenter_weights"]
    assert (record.path, record.sha256) == ("sam.pth", hashlib.sha256(b"one").hexdigest())
    resumed = replace(request_, resume=True)
    assert execute(stage, config, resumed).status == "already done"
    weights.write_bytes(b"two")
    with pytest.raises(OutputExistsError, match=r"other inputs \(segmenter_weights\)"):
        execute(stage, config, resumed)
    assert execute(stage, config, replace(resumed, overwrite=True)).status == "done"


def test_weight_files__folders_by_content_and_shipped_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    config = SegmentingConfig(segmenter="sam2.1-hiera-tiny", segmenter_weights=str(tmp_path))
    first = content_sha256(config.weight_files(trains=True)["segmenter_weights"])
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert content_sha256(tmp_path) != first
    shipped = SegmentingConfig().weight_files(trains=False)["segmenter_weights"]
    assert shipped.name == "sam_nano.safetensors"
    given = WsisConfig(backbone_weights="own.safetensors")
    assert set(given.weight_files(trains=True)) == {"backbone_weights", "segmenter_weights"}
    assert given.weight_files(trains=False) == {}


@pytest.mark.parametrize("absolute", [True, False])
def test_execute__unfinished_input_however_its_path_is_written(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    stage = FirstStage()
    stage.stop = True
    monkeypatch.chdir(tmp_path)
    here = replace(request_, run=Path("run") if absolute else tmp_path / "run")
    with pytest.raises(PreemptedError):
        execute(stage, ToyConfig(), here)
    unfinished = Path("run/cam/toy_train/cams.txt")
    unfinished.write_text("half")
    given = {"cams": tmp_path / unfinished if absolute else unfinished}
    with pytest.raises(MissingInputError, match="not finished"):
        execute(SecondStage(), ToyConfig(), replace(here, overrides=given))
    with pytest.raises(MissingInputError, match="not finished"):
        execute(SecondStage(), ToyConfig(), replace(here, run=tmp_path / "another", overrides=given))


def test_execute__failures_are_counted_named_and_limited(request_: Request) -> None:
    stage = FirstStage()
    stage.bad = ("b",)
    with pytest.raises(TooManyFailuresError, match="b: broken") as caught:
        execute(stage, ToyConfig(), replace(request_, max_failures="0"))
    assert caught.value.exit_code == 6
    manifest = read_manifest(request_.run / "cam" / "toy_train")
    assert manifest.failures == [{"id": "b", "reason": "broken"}], "the run finished all the same"
    assert execute(stage, ToyConfig(), replace(request_, max_failures="40%", overwrite=True)).status == "done"


def test_execute__failures_count_every_time(request_: Request) -> None:
    stage = FirstStage()
    stage.bad = ("b",)
    for resume, overwrite in ((False, False), (True, False), (True, True)):
        asked = replace(request_, max_failures="0", resume=resume, overwrite=overwrite)
        with pytest.raises(TooManyFailuresError, match="b: broken"):
            execute(stage, ToyConfig(), asked)
        manifest = request_.run / "cam" / "toy_train" / "manifest.json"
        assert manifest.stat().st_mtime < 1, "Make asks again, too"
    assert stage.runs == 1
    assert (
        execute(stage, ToyConfig(), replace(request_, max_failures="1", resume=True)).status == "already done"
    )
    assert manifest.stat().st_mtime > 1


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("")])
def test_execute__finished_with_an_output_missing_or_cut(request_: Request, damage: Any) -> None:
    out = execute(FirstStage(), ToyConfig(), request_).out
    damage(out / "cams.txt")
    with pytest.raises(OutputExistsError, match=r"cams\.txt changed since"):
        execute(FirstStage(), ToyConfig(), replace(request_, resume=True))
    assert execute(FirstStage(), ToyConfig(), replace(request_, resume=True, overwrite=True)).status == "done"
    assert (out / "cams.txt").read_text() == "x"


@pytest.mark.parametrize("name", ["manifest.json", "state/run.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema_version": 1, "outputs": 7}', "[" * 100_000])
def test_execute__damaged_record_of_a_run(request_: Request, name: str, content: str) -> None:
    stage = FirstStage()
    stage.stop = name.startswith("state")
    with contextlib.suppress(PreemptedError):
        execute(stage, ToyConfig(), request_)
    stage.stop = False
    out = request_.folder("cam")
    (out / name).write_text(content)
    with pytest.raises(OutputExistsError, match=r"damaged|other stage"):
        execute(stage, ToyConfig(), replace(request_, resume=True))
    assert execute(stage, ToyConfig(), replace(request_, overwrite=True)).status == "done"


def test_execute__folder_that_vanishes(request_: Request) -> None:
    class Removing(FirstStage):
        def run(self, config: Any, context: StageContext) -> Counts:
            shutil.rmtree(context.out)
            context.out.mkdir()
            return super().run(config, context)

    with pytest.raises(EnvironmentFault, match="removed or replaced"):
        execute(Removing(), ToyConfig(), request_)


def test_execute__what_killed_writes_left_is_removed(request_: Request) -> None:
    stage = FirstStage()
    stage.stop = True
    with pytest.raises(PreemptedError):
        execute(stage, ToyConfig(), request_)
    out = request_.folder("cam")
    (out / ".cams.unfinished-x1y2.txt").write_text("half")
    stage.stop = False
    execute(stage, ToyConfig(), replace(request_, resume=True))
    assert sorted(path.name for path in out.iterdir()) == [
        "cams.txt",
        "events.log",
        "manifest.json",
        "resolved.yaml",
    ]


def test_execute__killed_as_it_began(request_: Request) -> None:
    out = request_.folder("cam")
    (out / "state").mkdir(parents=True)
    (out / "resolved.yaml").write_text("cam: {}")
    (out / "state" / ".run.unfinished-a.json").write_text("")
    (out / ".owner-0-of-1").write_text("")  # cut, and as old as the kill
    os.utime(out / ".owner-0-of-1", (0, 0))
    assert execute(FirstStage(), ToyConfig(), replace(request_, resume=True)).status == "done"
    assert not list(out.glob(".*"))


def test_execute__time_of_all_attempts(request_: Request) -> None:
    stage = FirstStage()
    stage.stop = True
    with pytest.raises(PreemptedError):
        execute(stage, ToyConfig(), request_)
    (attempt,) = (request_.folder("cam") / "state").glob("attempt-*.json")
    noted = json.loads(attempt.read_text())
    attempt.write_text(json.dumps(noted | {"seconds": 100.0, "peak_memory_mib": 1e6}))
    stage.stop = False
    manifest = execute(stage, ToyConfig(), replace(request_, resume=True)).manifest
    assert manifest is not None
    assert 100 <= manifest.wall_seconds < 110
    assert manifest.images_per_second == pytest.approx(3 / manifest.wall_seconds, abs=0.001)
    assert manifest.peak_memory_mib == 1e6


def test_execute__fault_of_the_machine_in_a_stage(request_: Request) -> None:
    class Hungry(FirstStage):
        def run(self, config: Any, context: StageContext) -> Counts:
            raise MemoryError

    with pytest.raises(EnvironmentFault, match="out of memory"):
        execute(Hungry(), ToyConfig(), request_)
    assert "out of memory" in (request_.folder("cam") / "events.log").read_text()


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("7", 7), ("5%", 10), ("0%", 0), ("100%", 200)])
def test_failure_limit__count_or_share(text: str, expected: int) -> None:
    assert failure_limit(text, 200) == expected


@pytest.mark.parametrize("text", ["many", "-1", "%"])
def test_failure_limit__malformed(text: str) -> None:
    with pytest.raises(UsageError):
        failure_limit(text, 200)


def test_interrupt__before_the_work_stops_at_once() -> None:
    flag = InterruptFlag(deferred=False)
    with pytest.raises(PreemptedError, match="SIGTERM; before the work began"):
        flag.handle(signal.SIGTERM, None)
    flag.handle(
        signal.SIGUSR1, None
    )  # a launcher sends several, and kills the slower process: no second error


def test_interrupt__the_end_of_the_program_is_not_disturbed() -> None:
    outer = InterruptFlag(deferred=False)
    before = signal.signal(signal.SIGHUP, outer.handle)
    try:
        with catch_interrupts() as flag:
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(PreemptedError, match="SIGHUP after step 3; the state is saved"):
                stop_here(flag.check, "step 3")
        os.kill(os.getpid(), signal.SIGHUP)  # handled by the outer one, which knows
    finally:
        signal.signal(signal.SIGHUP, before)


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
