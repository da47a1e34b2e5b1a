"""The supervised bound trains the detectors on the ground truth, and compares like with like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.supervised_bound import Comparison, Options, compare, settings_of, write_ground_truth
from stages.core.artifacts.coco_json import read_dataset
from stages.core.backbones.timm_backbones import build_backbone
from stages.core.datasets.catalog import open_split
from stages.retrain.config import RetrainConfig
from stages.wsis.config import WsisConfig
from tests.datasets_builders import SCENES, make_voc
from tests.detector_builders import MASKED, TINY


def test_write_ground_truth__true_boxes_and_masks_in_the_format_of_pgt(tmp_path: Path) -> None:
    make_voc(tmp_path, masks=True)
    path = write_ground_truth("tiny_train", tmp_path, tmp_path / "truth.json")
    split = open_split("tiny_train", tmp_path)
    found = read_dataset(path, split).boxes
    first = SCENES["train"]["img_1"]
    assert found["img_1"].boxes_xyxy.tolist() == [list(map(float, o.box_xyxy)) for o in first]
    assert [split.classes[c] for c in found["img_1"].classes] == [o.name for o in first]
    assert found["img_1"].masks is not None


def test_settings_of__differ_from_the_run_only_where_said(tmp_path: Path) -> None:
    assert settings_of(tmp_path, "retrain", "tiny_train") == RetrainConfig(roi_drop="off")
    assert settings_of(tmp_path, "wsis", "tiny_train") == WsisConfig(mask_source="given")


@pytest.mark.parametrize(("weak", "ratio"), [(0.4, 0.5), (None, None)])
def test_comparison__ratio(weak: float | None, ratio: float | None) -> None:
    assert Comparison("retrain", "ap50", weak, 0.8).ratio == ratio


def test_compare__trains_both_rooms_outside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def random_backbone(*arguments: Any, **options: Any) -> Any:
        return build_backbone(*arguments, **options | {"pretrained": False})

    monkeypatch.setattr("stages.core.detectors.two_stage.faster_rcnn.build_backbone", random_backbone)
    tiny = {
        "retrain": RetrainConfig(**TINY, roi_drop="off"),
        "wsis": WsisConfig(**MASKED, mask_source="given"),
    }
    monkeypatch.setattr("benchmarks.supervised_bound.settings_of", lambda run, stage, train: tiny[stage])
    make_voc(tmp_path / "data", masks=True)
    options = Options(
        run=tmp_path / "run", out=tmp_path / "bound", data=tmp_path / "data", train="tiny_train", test="tiny_test",
        stages=("retrain", "wsis"), device="cpu", seed=0,
    )  # fmt: skip
    monkeypatch.setattr("stages.core.runtime.request.available_cores", lambda: 1)
    found = compare(options)
    assert {row.metric for row in found} == {"ap50", "coco_ap", "mask_ap50", "mask_ap75", "box_ap50"}
    assert all(row.weak is None and 0 <= row.supervised <= 1 for row in found)
    assert not (tmp_path / "run").exists()
    manifest = json.loads((tmp_path / "bound" / "wsis" / "tiny_train" / "manifest.json").read_text())
    assert manifest["config"]["mask_source"] == "given"
