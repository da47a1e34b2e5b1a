"""`weaksam run`, `status`, `show` and `recipes`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.core.artifacts.manifest import MANIFEST_NAME
from stages.core.registry import chain_specs
from stages.core.runtime.status import QUIET_SECONDS, run_status
from tests.command_builder import run
from tests.datasets_builders import make_coco, make_folder
from tests.run_builder import build_run, draw_toy_data

Output = pytest.CaptureFixture[str]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Requests that would have been carried out."""
    requests: list[Any] = []
    monkeypatch.setattr(
        "stages.core.runtime.execute.execute", lambda stage, config, request: requests.append(request)
    )
    return requests


def test_run__takes_a_folder_by_its_path_through_all_steps(
    tmp_path: Path, executed: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    make_coco(tmp_path / "photos")
    monkeypatch.setattr("weaksam_cli.chain._conclude", lambda *arguments, **options: None)
    folder = tmp_path / "photos" / "tiny"
    assert run("run", str(folder), "--run", str(tmp_path / "r"), "--classes", "dog,cat", "--seed", "4") == 0
    train = [spec.name for spec in chain_specs() if spec.output_names("train")]
    assert [r.split for r in executed].count("tiny_train") == len(train)
    assert {r.split for r in executed} == {"tiny_train", "tiny_test"}
    assert {(r.data, r.run, r.classes, r.seed, r.resume, r.overwrite) for r in executed} == {
        (tmp_path / "photos", tmp_path / "r", ("dog", "cat"), 4, True, True)
    }
    assert "[1/" in capsys.readouterr().err


def test_run__stops_where_it_is_told_and_leaves_out_a_test_split_that_is_not_there(
    tmp_path: Path, executed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, "pets", {"train": {"img_1": []}}, yaml=False)
    (tmp_path / "pets" / "train.csv").write_text("file_name,tags\nimg_1.jpg,dog\n")
    monkeypatch.setattr("weaksam_cli.chain._conclude", lambda *arguments, **options: None)
    assert run("run", "pets", "--data", str(tmp_path), "--until", "propose") == 0
    assert [r.split for r in executed] == ["pets_train"] * 3
    executed.clear()
    assert run("run", "pets", "--data", str(tmp_path), "--dry-run") == 0
    assert len(executed) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 3, "there is no such folder"),
        (["tiny", "--until", "wosd"], 2, "did you mean 'wsod'"),
        (["tiny", "--recipe", "ofline"], 2, "did you mean 'offline'"),
    ],
)
def test_run__what_cannot_work_is_said_before_anything_is_done(
    tmp_path: Path, executed: list[Any], capsys: Output, arguments: list[str], code: int, message: str
) -> None:
    make_coco(tmp_path)
    assert run("run", *arguments, "--data", str(tmp_path)) == code
    assert message in capsys.readouterr().err
    assert executed == []


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose first five stages are finished, and its data."""
    root = tmp_path_factory.mktemp("toy")
    draw_toy_data(root / "data", train=3, test=1)
    build_run(root / "run", root / "data", "toy_train", ("cam", "prompt", "propose", "wsod", "pgt"))
    return root


def test_run__ends_with_metric_report_and_next_step(toy: Path, capsys: Output) -> None:
    from weaksam_cli.chain import _conclude

    _conclude(toy / "run", toy / "data", "toy_train", "", as_json=False)
    *_, metric, report, following = capsys.readouterr().out.splitlines()
    assert metric.startswith("AP50 ")
    assert metric.endswith(" of wsod on toy_train")
    assert report == f"report: {toy / 'run' / 'report.html'}"
    assert following == f"next: weaksam predict PHOTOS --run {toy / 'run'}"


def test_status__every_step_and_how_to_go_on(toy: Path, tmp_path: Path, capsys: Output) -> None:
    folder = tmp_path / "run"
    shutil.copytree(toy / "run", folder)
    propose = json.loads((folder / "propose" / "toy_train" / MANIFEST_NAME).read_text())
    wsod_path = folder / "wsod" / "toy_train" / MANIFEST_NAME
    wsod = json.loads(wsod_path.read_text())
    made_from = {"path": "propose/toy_train/proposals.h5", "sha256": propose["outputs"]["proposals.h5"]}
    wsod_path.write_text(json.dumps(wsod | {"inputs": {"proposals": made_from}}))
    states = {step.stage: step.state for step in run_status(folder)}
    assert states == dict.fromkeys(("cam", "prompt", "propose", "wsod", "pgt"), "done")

    wsod_path.write_text(json.dumps(wsod | {"inputs": {"proposals": made_from | {"sha256": "0" * 64}}}))
    (folder / "prompt" / "toy_train" / "prompts.h5").unlink()
    cam_path = folder / "cam" / "toy_train" / MANIFEST_NAME
    failures = [{"id": "x", "reason": "truncated"}]
    cam_path.write_text(json.dumps(json.loads(cam_path.read_text()) | {"failures": failures}))
    begun = folder / "retrain" / "toy_train"
    begun.mkdir(parents=True)
    (begun / "metrics.jsonl").write_text('{"phase": "train", "step": 40}\n{"phase": "train", "st')
    now = os.stat(begun / "metrics.jsonl").st_mtime  # noqa: PTH116
    found = {step.stage: step for step in run_status(folder, now)}
    assert {name: step.state for name, step in found.items()} == {
        "cam": "failures", "prompt": "damaged", "propose": "done", "wsod": "stale", "pgt": "done",
        "retrain": "running",
    }  # fmt: skip
    assert found["wsod"].detail == "propose has written another proposals.h5 since"
    assert found["retrain"].detail.startswith("step 40")
    later = {step.stage: step for step in run_status(folder, now + QUIET_SECONDS + 1)}
    assert later["retrain"].state == "stopped"
    assert later["retrain"].command == f"weaksam retrain --split toy_train --run {folder} --resume"
    assert run("status", str(folder)) == 0
    assert f"next: weaksam prompt --split toy_train --run {folder}" in capsys.readouterr().out
    assert run("status", str(tmp_path / "nothing")) == 3


def test_show__draws_one_image_of_a_stage(toy: Path, tmp_path: Path, capsys: Output) -> None:
    artifact = toy / "run" / "pgt" / "toy_train" / "pgt.json"
    images = [image["file_name"] for image in json.loads(artifact.read_text())["images"]]
    image_id = Path(images[0]).stem
    arguments = (str(artifact), "--data", str(toy / "data"), "--out", str(tmp_path / "out"))
    assert run("show", *arguments, "--image", image_id) == 0
    picture = Path(capsys.readouterr().out.strip())
    assert picture.parent == tmp_path / "out"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run("show", *arguments, "--image", image_id + "x") == 2
    assert f"did you mean '{image_id}'" in capsys.readouterr().err


def test_recipes__list_show_and_diff(tmp_path: Path, capsys: Output) -> None:
    assert run("recipes", "list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert "paper" in rows["coco14"]["based_on"][-1]
    assert all(row["purpose"] for row in rows.values())
    assert run("recipes", "show", "toy", "wsod") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["wsod"]["epochs"] == 1
    own = tmp_path / "own.yaml"
    own.write_text("base: toy\nwsod: {epochs: 7}\n")
    assert run("recipes", "diff", "toy", str(own)) == 0
    assert capsys.readouterr().out == "wsod.epochs: 1 -> 7\n"
    assert run("recipes", "show", "tyo") == 2
    assert "did you mean 'toy'" in capsys.readouterr().err
