"""The ablation on a few tiny images: normal run folders, nothing done twice, and one table at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.ablation import main, parse
from benchmarks.ablation_runs import Bench, Options
from stages.core.artifacts.coco_json import read_dataset, read_results
from stages.core.artifacts.manifest import read_manifest
from stages.core.backbones.timm_backbones import build_backbone
from stages.core.datasets.catalog import open_split
from stages.core.errors import MissingInputError, UsageError
from stages.core.runtime.execute import Outcome, execute
from stages.retrain.config import RetrainConfig
from stages.wsod.config import WsodConfig
from tests.datasets_builders import SCENES, Obj, make_voc
from tests.detector_builders import TINY as RETRAIN
from tests.run_builder import build_run
from tests.wsod_builders import TINY as WSOD

SUBSETS = {**SCENES, "val": {"img_6": [Obj("dog")], "img_7": [Obj("cat", (4, 2, 40, 30))]}}


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A finished run on tiny images and a recipe of seconds; returns what the stages are asked for, and the outcome."""

    def random_backbone(*arguments: Any, **options: Any) -> Any:
        return build_backbone(*arguments, **options | {"pretrained": False})

    calls: list[tuple[str, str]] = []

    def recorded(*arguments: Any, **options: Any) -> Outcome:
        outcome = execute(*arguments, **options)
        calls.append((outcome.out.relative_to(tmp_path / "out").as_posix(), outcome.status))
        return outcome

    monkeypatch.setattr("stages.core.detectors.two_stage.faster_rcnn.build_backbone", random_backbone)
    monkeypatch.setattr("stages.core.runtime.request.available_cores", lambda: 0)
    monkeypatch.setattr("benchmarks.ablation_runs.execute", recorded)
    make_voc(tmp_path / "data", subsets=SUBSETS)
    for subset in SUBSETS:
        build_run(tmp_path / "run", tmp_path / "data", f"tiny_{subset}", ["propose", "wsod"])
    sections = {"wsod": WSOD | {"epochs": 1}, "retrain": RETRAIN | {"epochs": 1}}
    plain = json.loads(json.dumps(sections))  # no tuples
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    return calls


def arguments(tmp_path: Path, *more: str) -> list[str]:
    given = {"--dataset": "tiny", "--recipe": str(tmp_path / "tiny.yaml"), "--device": "cpu"}
    given |= {f"--{name}": str(tmp_path / name) for name in ("run", "out", "data")}
    return [*(word for pair in given.items() for word in pair), *more]


def result(tmp_path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((tmp_path / "out" / "ablation.json").read_text(encoding="utf-8"))
    return loaded


def test_main__one_table_from_normal_run_folders_and_nothing_twice(
    tmp_path: Path, finished: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        "wsod/mist-cdb",
        "pgt/*",
        "faster-rcnn/top1",
        "faster-rcnn/improved-drop",
        "faster-rcnn/supervised",
    ]
    main(arguments(tmp_path, "--seeds", "0", "--rows", *rows))
    first = list(finished)
    assert {status for _, status in first} == {"done"}
    # A detector on two splits; three rules; two rows of pgt and a detector; the bound has no pgt.
    assert len(first) == 2 + 3 + 2 * 3 + 2
    assert "faster-rcnn/improved-drop/s0/retrain/tiny_test" in dict(first)
    table = capsys.readouterr().out
    assert "| MIST + CDB | " in table
    assert table == (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8") + "\n"
    lines = {row["key"]: row["metrics"] for row in result(tmp_path)["rows"]}
    assert lines["wsod/mist-cdb"].keys() == {"ap50", "coco_ap", "corloc"}
    assert {"precision50", "recall50", "ap50"} <= lines["faster-rcnn/top1"].keys()
    assert {"tau_s.png", "tau_o.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "drop" not in result(tmp_path)["sweeps"]
    # The bound is trained on the ground truth, which no other row is.
    folder = tmp_path / "out" / "faster-rcnn" / "supervised" / "s0" / "retrain" / "tiny_train"
    assert read_manifest(folder).counts["pseudo_boxes"] == sum(map(len, SCENES["train"].values()))

    finished.clear()
    main(arguments(tmp_path, "--seeds", "0", "1", "--rows", *rows))
    status = {out: status for out, status in finished}
    assert {status[out] for out, _ in first} == {"already done"}
    assert {name for out, name in status.items() if out not in dict(first)} == {"done"}
    assert all("/s1/" in out for out, name in status.items() if name == "done")
    again = {row["key"]: row["metrics"] for row in result(tmp_path)["rows"]}
    assert set(again["wsod/mist-cdb"]["ap50"]["values"]) == {"0", "1"}
    assert again["wsod/mist-cdb"]["ap50"]["values"]["0"] == lines["wsod/mist-cdb"]["ap50"]["mean"]
    assert again["pgt/paper"]["recall50"]["std"] is None  # one teacher for all seeds


def test_main__sweep_of_roi_drop_sees_the_validation_split_only(
    tmp_path: Path, finished: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.ablation_sweeps.TAU_RAW", (2.0,))
    main(arguments(tmp_path, "--only", "sweeps", "--sweep-drop", "4", "--set", "retrain.tau_cls=2.0"))
    # (2, 4) is the base; tau_reg 2 and no drop are the others.
    assert len({out.split("/")[1] for out, _ in finished}) == 3
    assert not any("tiny_test" in out for out, _ in finished)
    assert {out.split("/")[2] for out, _ in finished} == {"s4"}
    sweeps = result(tmp_path)["sweeps"]
    assert sweeps["drop"]["split"] == sweeps["tau_s"]["split"] == "tiny_val"
    assert [value for value, _ in sweeps["drop"]["curves"]["tau_reg"]["AP50"]] == [2.0, 4.0]
    assert (tmp_path / "out" / "drop.png").is_file()


def test_main__a_limit_cuts_every_split_and_the_teacher(
    tmp_path: Path, finished: list[tuple[str, str]]
) -> None:
    main(
        arguments(
            tmp_path, "--seeds", "0", "--only", "retrain", "--limit", "1", "--rows", "*/top1", "*/supervised"
        )
    )
    for row in ("top1", "supervised"):
        folder = tmp_path / "out" / "faster-rcnn" / row / "s0" / "retrain"
        assert read_manifest(folder / "tiny_train").counts["training_images"] == 1
        assert read_manifest(folder / "tiny_test").limit == 1
    split = open_split("tiny_train", tmp_path / "data").limited(1)
    assert len(read_dataset(tmp_path / "out" / "ground_truth" / "pgt.json", split).boxes["img_1"]) == 2
    assert (
        len(read_results(tmp_path / "out" / "teacher" / "tiny_train" / "detections.json", split)["img_1"])
        == 2
    )


def test_main__a_row_of_wsod_teaches_with_its_own_seed(
    tmp_path: Path, finished: list[tuple[str, str]]
) -> None:
    main(
        arguments(tmp_path, "--seeds", "3", "5", "--only", "pgt", "--teacher", "wsddn", "--rows", "pgt/top1")
    )
    expected = ("wsod/wsddn/s{}/wsod/tiny_train", "pgt/top1/s{}/pgt/tiny_train")
    assert [out for out, _ in finished] == [path.format(seed) for seed in (3, 5) for path in expected]
    assert set(result(tmp_path)["rows"][0]["metrics"]["recall50"]["values"]) == {"3", "5"}


def test_main__missing_inputs_are_found_before_anything_is_trained(
    tmp_path: Path, finished: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "wsod" / "tiny_train" / "manifest.json").unlink()
    with pytest.raises(SystemExit) as stop:
        main(arguments(tmp_path))
    assert stop.value.code == MissingInputError.exit_code
    assert "no finished wsod" in capsys.readouterr().err
    assert finished == []


def test_main__some_failures_leave_a_table_and_exit_code_6(
    tmp_path: Path, finished: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Bench.metrics

    def metrics(self: Bench, row: Any, seed: int) -> dict[str, float]:
        if row.key == "pgt/paper":
            raise MissingInputError("gone")
        return whole(self, row, seed)

    monkeypatch.setattr(Bench, "metrics", metrics)
    with pytest.raises(SystemExit) as stop:
        main(arguments(tmp_path, "--only", "pgt"))
    assert stop.value.code == 6
    assert [row["key"] for row in result(tmp_path)["rows"]] == ["pgt/top1", "pgt/improved"]
    assert result(tmp_path)["failed"] == ["pgt/paper, seed 0: gone"]


def test_main__dry_run_counts_finished_seeds(
    tmp_path: Path, finished: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(tmp_path, "--seeds", "0", "--only", "pgt", "--rows", "pgt/top1"))
    capsys.readouterr()
    main(arguments(tmp_path, "--only", "pgt", "--dry-run"))
    counts = [line.split()[-2] for line in capsys.readouterr().out.splitlines()]
    assert counts == ["1/3", "0/3", "0/3"]


def test_settings__those_of_the_run_unless_a_recipe_is_given(
    tmp_path: Path, finished: list[tuple[str, str]]
) -> None:
    manifest = tmp_path / "run" / "wsod" / "tiny_train" / "manifest.json"
    loaded = json.loads(manifest.read_text(encoding="utf-8")) | {"config": {"epochs": 7}}
    manifest.write_text(json.dumps(loaded), encoding="utf-8")
    run, out, data = (tmp_path / name for name in ("run", "out", "data"))
    options = Options(run=run, out=out, data=data, train="tiny_train", test="tiny_test")
    found = Bench(options).settings("wsod", {"method": "mist"})
    assert isinstance(found, WsodConfig)
    assert (found.epochs, found.method) == (7, "mist")
    assert Bench(options).settings("retrain") == RetrainConfig()


def test_parse__validation_split_of_other_images_only(tmp_path: Path) -> None:
    make_voc(tmp_path / "data", subsets={**SCENES, "val": dict(list(SCENES["test"].items())[:1])})
    options, _ = parse(arguments(tmp_path))
    assert options.val is None
    with pytest.raises(UsageError, match="shares 1 images with tiny_test"):
        parse(arguments(tmp_path, "--val", "tiny_val"))
    with pytest.raises(UsageError, match="is no part"):
        parse(arguments(tmp_path, "--only", "wsod,cam"))
