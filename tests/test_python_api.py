"""The package `weaksam`: what its page shows works, what it returns is what the files hold, and it keeps silent."""

from __future__ import annotations

import ast
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import weaksam
from stages.core.artifacts.manifest import read_manifest, write_manifest
from stages.core.artifacts.schemas import PROPOSALS
from stages.core.artifacts.table import ImageRows, gather, read_table, write_table
from stages.core.datasets.shapes import dataset as shapes
from stages.core.errors import GroundTruthForbiddenError
from stages.core.registry import CHAIN
from tests.predict_builders import write_detector
from tests.run_builder import build_run

ROOT = Path(__file__).resolve().parents[1]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TRAIN = "shapes_train"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `data/shapes` of a few images and a finished run `runs/demo`, as `make demo` leaves them."""
    folder = tmp_path_factory.mktemp("demo")
    shapes.write_shapes(folder / "data", {"train": 6, "val": 1, "test": 3})
    with pytest.MonkeyPatch.context() as patch:
        # The real set has 900 images; these few are as good here.
        patch.setattr(shapes, "ensure_shapes", lambda root: root / "shapes")
        run = folder / "runs" / "demo"
        build_run(run, folder / "data", TRAIN, CHAIN)
        build_run(run, folder / "data", "shapes_test", [stage for stage in CHAIN if stage != "pgt"])
        classes = weaksam.open_split(TRAIN, folder / "data").classes
        write_detector(run / "retrain" / TRAIN / "detector.safetensors", classes=classes)
        yield folder


@pytest.fixture
def run(demo: Path) -> weaksam.Run:
    return weaksam.open_run(demo / "runs" / "demo", demo / "data")


@pytest.fixture
def beside_demo(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user of the demo works: in the folder that holds data/ and runs/."""
    monkeypatch.chdir(demo)
    monkeypatch.delenv("WEAKSAM_DATA")


@pytest.mark.usefixtures("beside_demo")
def test_page__its_examples_run_and_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    blocks = PYTHON.findall((ROOT / "docs" / "python-api.md").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["what_to_do"] == "did you mean 'epochs'?"
    assert names["masks_NHW"].shape == (len(names["pseudo"]), *names["pixels"].shape[:2])
    assert max(names["picture"].shape) == 480
    assert names["boxes_kept"] > 0
    assert capfd.readouterr() == ("", "")


def displayed(source: str, names: dict[str, Any]) -> Any:
    """Run a cell of a notebook and return the value of its last line, which is what a notebook shows."""
    *before, last = ast.parse(source).body
    assert isinstance(last, ast.Expr), f"a cell that shows nothing: {source}"
    shown = ast.copy_location(ast.Assign([ast.Name("_shown", ast.Store())], last.value), last)
    module = ast.fix_missing_locations(ast.Module([*before, shown], type_ignores=[]))
    exec(compile(module, "cell", "exec"), names)
    return names["_shown"]


@pytest.mark.usefixtures("beside_demo")
def test_notebook__runs_and_shows_pictures() -> None:
    notebook = json.loads((ROOT / "docs" / "notebooks" / "demo.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    shown = [displayed(source, names) for source in cells]
    pictures = [value for value in shown if isinstance(value, Image.Image)]
    assert len(pictures) == sum("Image.fromarray(" in source for source in cells) == 8
    assert all(np.asarray(picture).std() > 10 for picture in pictures)
    assert ("cam", TRAIN, 6, 12.5) in shown[0]


def test_import__costs_no_torch() -> None:
    code = "import sys, weaksam; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_artifacts__are_what_the_files_hold(run: weaksam.Run) -> None:
    image_id = run.train.ids[1]
    table = read_table(run.path / "propose" / TRAIN / "proposals.h5", PROPOSALS)
    boxes = run.train.proposals(image_id)
    assert boxes.boxes_xyxy[:, 2].tolist() == table.rows(image_id)["x2"].tolist()
    assert len(boxes.from_source("grid")) == 40
    assert boxes.masks is None
    dataset = json.loads((run.path / "wsis" / TRAIN / "pgt_masks.json").read_text())
    number = run.train.split.coco_id(image_id)
    wanted = [entry for entry in dataset["annotations"] if entry["image_id"] == number]
    found = run.train.pseudo_masks(image_id)
    assert [round(float(s), 6) for s in found.scores] == [entry["score"] for entry in wanted]
    areas = weaksam.decode_masks(found.masks or []).sum(axis=(1, 2))
    assert areas.tolist() == [coco_mask.area(entry["segmentation"]) for entry in wanted]
    label = run.train.classes.index(run.train.tags(image_id)[0])
    cross = run.train.maps(image_id).of(label, "cross")
    assert (len(cross), cross.mean().shape) == (2, (20, 20))
    np.testing.assert_allclose(cross.mean(), np.mean([cross.maps[0], cross.maps[1]], axis=0))
    points = run.train.prompts(image_id)
    assert sum(len(points.of_kind(kind)) for kind in weaksam.MAP_KINDS) == len(points) > 0


def test_artifacts__masks_of_proposals(run: weaksam.Run, tmp_path: Path) -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 1
    coded = coco_mask.encode(np.asfortranarray(mask))["counts"]
    columns: dict[str, Any] = {
        name: np.array([value])
        for name, value in {"x1": 2, "y1": 1, "x2": 5, "y2": 3, "source": 2, "class_index": 0}.items()
    }
    columns |= {name: np.ones(1) for name in ("peak_score", "predicted_iou", "stability", "mask_index")}
    empty = [np.zeros(0)]
    pools: dict[str, Any] = {
        "rle": [np.frombuffer(coded, np.uint8)],
        "evidence": empty,
        "evidence_class": empty,
    }
    rows = {"a": ImageRows(columns, {"image_h": 4, "image_w": 6}, pools)}
    write_table(tmp_path / "proposals.h5", PROPOSALS, gather(PROPOSALS, rows))
    stored = weaksam.Proposals.of_image(read_table(tmp_path / "proposals.h5", PROPOSALS), "a")
    assert (weaksam.decode_masks(stored.masks or [])[0] == mask).all()


def test_run__what_it_lacks_is_named(run: weaksam.Run, demo: Path, tmp_path: Path) -> None:
    with pytest.raises(weaksam.UsageError, match=r"no image 'scene'"):
        run.train.detections("scene")
    with pytest.raises(weaksam.UsageError, match=r"did you mean 'wsod'"):
        run.train.detections(run.train.ids[0], stage="wsodd")
    with pytest.raises(weaksam.MissingInputError, match=r"pgt has not finished on shapes_test"):
        run.test.pseudo_boxes(run.test.ids[0])
    with pytest.raises(weaksam.UsageError, match=r"choose one of shapes_test, shapes_train"):
        run.stage("cam")
    with pytest.raises(GroundTruthForbiddenError):
        run.test.tags(run.test.ids[0])
    with pytest.raises(weaksam.MissingInputError, match=r"beside it: .*/runs/demo"):
        weaksam.open_run(demo / "runs" / "other")
    with pytest.raises(weaksam.MissingInputError, match="no stage has finished"):
        weaksam.open_run(tmp_path)


def test_run__limited_ids_are_those_that_went_through(demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pgt" / TRAIN
    shutil.copytree(demo / "runs" / "demo" / "pgt" / TRAIN, folder)
    write_manifest(folder, replace(read_manifest(folder), limit=2))
    train = weaksam.open_run(tmp_path, demo / "data").train
    assert train.ids == train.split.ids[:2]
    assert len(train.pseudo_boxes(train.ids[1])) > 0
    with pytest.raises(weaksam.UsageError):
        train.pseudo_boxes(train.split.ids[2])


def test_run_stage__as_the_command_line_but_silent(
    demo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    given = {"detections": demo / "runs" / "demo" / "wsod" / TRAIN / "detections.json"}
    common: dict[str, Any] = {"data": demo / "data", "inputs": given}
    logger = logging.getLogger("weaksam")
    logger.propagate = True  # a command of an earlier test may have changed it
    before, threads = list(logger.handlers), torch.get_num_threads()
    with caplog.at_level(logging.INFO, "weaksam"):
        first = weaksam.run_stage("pgt", TRAIN, tmp_path, config={"mode": "topk", "top_k": "2"}, **common)
    assert (first.manifest.config["mode"], first.manifest.config["top_k"]) == ("topk", 2)
    assert first.folder == tmp_path / "pgt" / TRAIN
    assert any("done in" in message for message in caplog.messages)
    assert capfd.readouterr() == ("", "")
    assert (logger.handlers, torch.get_num_threads()) == (before, threads)
    config = weaksam.stage_config("pgt", {"mode": "topk", "top_k": 2})
    again = weaksam.run_stage("pgt", TRAIN, tmp_path, config=config, resume=True, **common)
    assert again.manifest.started == first.manifest.started
    with pytest.raises(weaksam.OutputExistsError):
        weaksam.run_stage("pgt", TRAIN, tmp_path, config=config, **common)


def test_stage_config__recipe_below_values_and_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAKSAM_WSOD__BATCH_SIZE", "7")
    config: Any = weaksam.stage_config("wsod", {"epochs": 5}, recipe="toy")
    assert (config.epochs, config.batch_size, config.fc_dim) == (5, 2, 32)
    with pytest.raises(weaksam.UsageError, match="did you mean 'wsod'"):
        weaksam.stage_config("wsodd")
    with pytest.raises(weaksam.ConfigError, match="settings of wsod, not of pgt"):
        weaksam.run_stage("pgt", TRAIN, "runs/none", config=config)
    with pytest.raises(weaksam.ConfigError, match="complete"):
        weaksam.run_stage("wsod", TRAIN, "runs/none", config=config, recipe="toy")


def test_detector__arrays_and_files_give_the_same(run: weaksam.Run) -> None:
    detector = weaksam.open_detector(run.path, device="cpu")
    assert detector.classes == run.train.classes
    image_id = run.test.ids[0]
    path, pixels = run.test.split.image_path(image_id), run.test.image(image_id)
    strict, all_of_them = detector.predict(pixels, 0.2), detector.predict(path, 0.0)
    assert 0 < len(all_of_them) >= len(strict)
    assert (all_of_them.scores[:-1] >= all_of_them.scores[1:]).all()
    assert strict.boxes_xyxy.tolist() == all_of_them.reaching(0.2).boxes_xyxy.tolist()
    with pytest.raises(weaksam.ImageError, match=r"float64 \(4, 4, 3\)"):
        detector.predict(np.zeros((4, 4, 3)))  # type: ignore[arg-type]
    with pytest.raises(weaksam.SchemaError):
        weaksam.open_detector(path)
