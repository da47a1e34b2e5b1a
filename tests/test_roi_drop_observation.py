"""The observation behind RoI drop: metrics by hand, and a whole toy run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.roi_drop_observation import Rois, error_by_loss, main, rule_metrics, scaled
from stages.core.artifacts.coco_json import write_dataset
from stages.core.backbones.timm_backbones import build_backbone
from stages.core.datasets.catalog import open_split
from stages.core.runtime.execute import execute
from stages.core.runtime.request import Request
from stages.core.structures.detections import Detections
from stages.retrain.config import RetrainConfig
from stages.retrain.roi_drop import DropRule
from stages.retrain.stage import STAGE
from tests.datasets_builders import HEIGHT, SCENES, WIDTH, make_voc
from tests.detector_builders import TINY


def test_error_by_loss__by_hand() -> None:
    loss = np.array([0.0, 0.05, 0.95, 1.0])
    bins = error_by_loss(loss, np.array([False, True, True, True]), bins=2)
    assert [(one.rois, one.error_rate) for one in bins] == [(2, 0.5), (2, 1.0)]
    assert error_by_loss(loss[:2], np.array([True, True]), bins=2)[1].error_rate is None


def test_rule_metrics__precision_and_recall() -> None:
    high = np.array([9.0, 9.0, 0.0, 9.0])
    rois = Rois(list("abcd"), high, np.array([9.0, 9.0, 9.0, 0.0]), np.array([True, False, True, True]))
    found = rule_metrics(rois, "paper", DropRule("paper", 4.0, 4.0))
    assert (found.dropped_fraction, found.precision, found.recall) == (0.5, 0.5, 1 / 3)
    nothing = rule_metrics(rois, "off", DropRule("off"))
    assert (nothing.dropped_fraction, nothing.precision, nothing.recall) == (0.0, None, 0.0)
    assert scaled(np.array([3.0, 3.0])).tolist() == [0.0, 0.0]


def test_main__a_toy_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def random_backbone(*arguments: Any, **options: Any) -> Any:
        return build_backbone(*arguments, **options | {"pretrained": False})

    monkeypatch.setattr("stages.core.detectors.two_stage.faster_rcnn.build_backbone", random_backbone)
    data, run = tmp_path / "data", tmp_path / "run"
    make_voc(data)
    split = open_split("tiny_train", data)
    boxes = {}
    for image_id, objects in SCENES["train"].items():
        corners = np.array([o.box_xyxy for o in objects], np.float32)
        classes = np.array([split.classes.index(o.name) for o in objects], np.int64)
        if image_id == "img_3":  # a wrong pseudo class: none of its RoIs can be right
            classes = (classes + 1) % 3
        boxes[image_id] = Detections(corners, classes, np.ones(len(objects), np.float32))
    pgt = tmp_path / "pgt.json"
    write_dataset(pgt, split, boxes, dict.fromkeys(boxes, (HEIGHT, WIDTH)))
    request = Request(split="tiny_train", run=run, data=data, overrides={"pgt": pgt}, show_progress=False)
    execute(STAGE, RetrainConfig(**TINY), request)
    (run / "pgt" / "tiny_train").mkdir(parents=True)
    shutil.copy(pgt, run / "pgt" / "tiny_train")
    main(["--run", str(run), "--split", "tiny_train", "--data", str(data), "--device", "cpu"])
    out = run / "roi_drop_observation"
    metrics = json.loads((out / "observation.json").read_text())
    rows = [line.split(",") for line in (out / "rois.csv").read_text().splitlines()[1:]]
    assert len(rows) == metrics["rois"] > 0
    assert {wrong for image, _, _, wrong in rows if image == "img_3"} == {"1"}
    assert {wrong for image, _, _, wrong in rows if image == "img_1"} == {"0"}
    assert sum(one["rois"] for one in metrics["regression"]) == metrics["rois"]
    assert "error rate" in capsys.readouterr().out
    assert {path.name for path in out.glob("*.png")} == {"classification.png", "regression.png", "sum.png"}
