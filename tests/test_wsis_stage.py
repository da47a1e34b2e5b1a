"""`wsis` as a stage: masks of boxes, fit and apply on tiny images, given masks, resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stages.core.artifacts.coco_json import read_dataset, read_results
from stages.core.errors import SchemaError
from stages.wsis.config import WsisConfig
from stages.wsis.pseudo_masks import make_pseudo_masks
from stages.wsis.stage import WsisStage
from tests.datasets_builders import HEIGHT, WIDTH, make_image
from tests.detector_builders import MASKED, BoxSegmenter, context, count_detector_calls, run, write_pgt

pytestmark = pytest.mark.usefixtures("random_backbones")


def test_wsis__masks_fit_and_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stages.core.segmenters.loading as segmenters

    segmenter = BoxSegmenter()
    monkeypatch.setattr(segmenters, "load_segmenter", lambda *arguments, **options: segmenter)
    train = context(tmp_path, "train", "wsis")
    train.inputs = {"pgt": write_pgt(tmp_path, train.split, skip=("img_3",))}
    counts = run(WsisStage(), WsisConfig(**MASKED), train)
    assert segmenter.encodings == 2  # one per image with boxes
    assert counts["pseudo_masks"] == 4
    assert counts["masks_filled_box"] == 0
    masks = read_dataset(train.out / "pgt_masks.json", train.split).boxes
    assert masks["img_1"].boxes_xyxy[0].tolist() == [4, 6, 14, 26]  # the tight box of the mask
    raw = json.loads((train.out / "pgt_masks.json").read_text())
    assert raw["annotations"][0]["area"] == 10 * 20
    assert {entry["iscrowd"] for entry in raw["annotations"]} == {0}
    assert len(raw["images"]) == 3
    checkpoint = train.out / "segmenter.safetensors"
    test = context(tmp_path, "test", "wsis", checkpoint=checkpoint)
    calls = count_detector_calls(monkeypatch)
    run(WsisStage(), WsisConfig(**MASKED), test)
    assert calls == {"read_metadata": 1, "build": 1, "load_tensors": 1}
    found = read_results(test.out / "segmentations.json", test.split)
    assert found["img_4"].masks is not None
    assert found["img_4"].masks[0]["size"] == [HEIGHT, WIDTH]
    given = context(tmp_path, "train", "given", checkpoint=checkpoint)
    assert WsisStage().plan(WsisConfig(**MASKED), given).notes == ("apply only",)
    run(WsisStage(), WsisConfig(**MASKED), given)
    assert [path.name for path in given.out.glob("*.*")] == ["segmentations.json"]
    assert (given.out / "segmentations.json").read_bytes() == (train.out / "segmentations.json").read_bytes()


def test_wsis__given_masks_may_be_polygons(tmp_path: Path) -> None:
    train = context(tmp_path, "train", "wsis")
    path = write_pgt(tmp_path, train.split, masked=True)
    wanted = read_dataset(path, train.split).boxes
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path.write_text(json.dumps(content))
    config = WsisConfig(**MASKED, mask_source="given")
    train.inputs = {"pgt": path}
    WsisStage().plan(config, train)
    made = make_pseudo_masks(train, config)
    assert {i: one.masks for i, one in made.masks.items()} == {i: one.masks for i, one in wanted.items()}


def test_wsis__given_masks_that_are_absent_or_of_another_size(tmp_path: Path) -> None:
    train = context(tmp_path, "train", "wsis")
    config = WsisConfig(**MASKED, mask_source="given")
    train.inputs = {"pgt": write_pgt(tmp_path, train.split)}
    with pytest.raises(SchemaError, match="without masks for image img_1"):
        WsisStage().plan(config, train)
    train.inputs = {"pgt": write_pgt(tmp_path, train.split, masked=True)}
    make_image(train.split.image_path("img_2"), width=WIDTH, height=HEIGHT + 1)
    assert "img_2" not in make_pseudo_masks(train, config).masks
    assert f"[{HEIGHT}, {WIDTH}] for image img_2, which is [{HEIGHT + 1}" in train.failures.entries["img_2"]


def test_wsis__masks_are_not_made_again_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stages.core.segmenters.loading as segmenters

    segmenter = BoxSegmenter()
    monkeypatch.setattr(segmenters, "load_segmenter", lambda *arguments, **options: segmenter)
    at = context(tmp_path, "train", "wsis")
    at.inputs = {"pgt": write_pgt(tmp_path, at.split)}
    counts = run(WsisStage(), WsisConfig(**MASKED), at)
    assert counts["training_images"] == 3
    before = (at.out / "segmentations.json").read_bytes()
    encodings = segmenter.encodings
    (at.out / "segmenter.safetensors").unlink()
    shutil.rmtree(at.out / "state")
    at.resume, at.loaders = True, 1  # trained again, from batches that are loaded ahead
    assert run(WsisStage(), WsisConfig(**MASKED), at) == counts
    assert segmenter.encodings == encodings
    assert (at.out / "segmentations.json").read_bytes() == before
