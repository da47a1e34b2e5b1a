"""`weaksam predict`: images of no data set in, one COCO data set and a picture of each image out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from stages.core.datasets.photos import open_photos
from stages.core.detectors.checkpoints import DetectorFile
from stages.core.detectors.inference import detect
from stages.core.detectors.two_stage.faster_rcnn import save_detector
from stages.core.errors import InputError, MissingInputError
from stages.core.structures.detections import Detections
from stages.core.structures.rle import decode_masks
from stages.core.weights.checkpoints import save_weights
from stages.predict.config import PredictConfig
from stages.predict.stage import PredictFactory
from stages.predict.viz import draw_detections, picture_names
from tests.datasets_builders import make_image
from tests.detector_builders import count_detector_calls
from tests.predict_builders import CLASSES, SPEC, finished, predict, write_detector


def trained_run(folder: Path) -> Path:
    """A run with a finished retrain."""
    checkpoint = write_detector(folder / "retrain" / "pets_train" / "detector.safetensors")
    finished(checkpoint.parent, "retrain", (checkpoint.name,))
    return folder


def photos(folder: Path) -> Path:
    """Two images, one of them in a folder below, and things that are none."""
    make_image(folder / "b.jpg", 1)
    make_image(folder / "deep" / "a.png", 2, width=20, height=44)
    make_image(folder / ".hidden" / "c.jpg", 3)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predict__folder_gives_a_coco_data_set_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, folder = trained_run(tmp_path / "run"), photos(tmp_path / "photos")
    assert predict(folder, "--run", trained, "--score-thresh", 0, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    out = trained / "predict"
    assert result["file"] == str(out / "predictions.json")
    assert result["counts"]["images"] == 2
    coco = COCO(str(out / "predictions.json"))  # any COCO tool reads it
    assert [image["file_name"] for image in coco.loadImgs([1, 2])] == ["b.jpg", "deep/a.png"]
    assert [(c["id"], c["name"]) for c in coco.loadCats([1, 2])] == [(1, "cat"), (2, "dog")]
    model = DetectorFile.open(trained / "retrain" / "pets_train" / "detector.safetensors").model()
    wanted = detect(model, np.asarray(Image.open(folder / "deep" / "a.png").convert("RGB")))
    found = coco.loadAnns(coco.getAnnIds([2]))
    assert [a["score"] for a in found] == pytest.approx(wanted.scores.tolist(), abs=1e-5)
    assert [a["category_id"] - 1 for a in found] == wanted.classes.tolist()
    corner_and_size = np.concatenate(
        [wanted.boxes_xyxy[:, :2], wanted.boxes_xyxy[:, 2:] - wanted.boxes_xyxy[:, :2]], 1
    )
    np.testing.assert_allclose([a["bbox"] for a in found], corner_and_size, atol=2e-3)
    with Image.open(out / "viz" / "deep" / "a.png") as picture:
        assert picture.size == (round(20 * 480 / 44), 480)
    assert (out / "viz" / "b.png").is_file()


def test_predict__reads_the_detector_once_and_builds_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, detector = photos(tmp_path / "photos"), write_detector(tmp_path / "d.safetensors")
    calls = count_detector_calls(monkeypatch)
    arguments = (
        "--detector",
        detector,
        "--out",
        tmp_path / "out",
        "--tta-short-sides",
        "48,80",
        "--workers",
        0,
    )
    assert predict(folder, *arguments) == 0
    assert calls == {"read_metadata": 1, "build": 1, "load_tensors": 1}


def test_predict__threshold_and_limit_and_no_overlays(tmp_path: Path) -> None:
    detector, folder = write_detector(tmp_path / "d.safetensors"), photos(tmp_path / "photos")
    arguments = (folder, "--detector", detector, "--no-overlays")
    assert predict(*arguments, "--out", tmp_path / "all", "--score-thresh", 0) == 0
    scores = [a["score"] for a in read(tmp_path / "all")["annotations"]]
    cut = sorted(scores)[len(scores) // 2] - 1e-6  # the file has six digits
    assert predict(*arguments, "--out", tmp_path / "some", "--score-thresh", cut) == 0
    kept = [a["score"] for a in read(tmp_path / "some")["annotations"]]
    assert kept == [s for s in scores if s >= cut]
    assert predict(*arguments, "--out", tmp_path / "one", "--limit", 1) == 0
    assert [i["file_name"] for i in read(tmp_path / "one")["images"]] == ["b.jpg"]
    assert not (tmp_path / "all" / "viz").exists()


def test_predict__threshold_below_that_of_the_detector(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    open_to_all, strict = write_detector(tmp_path / "all.safetensors"), tmp_path / "strict.safetensors"
    model = DetectorFile.open(open_to_all).model()
    save_detector(strict, model, SPEC.model_copy(update={"score_thresh": 0.9}), CLASSES)
    found = {}
    for detector in (open_to_all, strict):
        arguments = ("--detector", detector, "--out", tmp_path / detector.stem, "--score-thresh", 0)
        assert predict(folder, *arguments, "--no-overlays") == 0
        found[detector] = read(tmp_path / detector.stem)["annotations"]
    assert found[strict] == found[open_to_all]
    assert 0 < min(entry["score"] for entry in found[strict]) < 0.9


def test_predict__views_of_the_training_or_those_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, folder = trained_run(tmp_path / "run"), photos(tmp_path / "photos")
    checkpoint = trained / "retrain" / "pets_train" / "detector.safetensors"
    finished(
        checkpoint.parent,
        "retrain",
        (checkpoint.name,),
        {"tta_short_sides": [], "train_short_sides": [48, 80]},
    )
    assert predict(folder, "--run", trained, "--score-thresh", 0, "--tta") == 0
    model = DetectorFile.open(checkpoint).model()
    pixels = np.asarray(Image.open(folder / "deep" / "a.png").convert("RGB"))
    scores = [a["score"] for a in read(trained / "predict")["annotations"] if a["image_id"] == 2]
    assert scores == pytest.approx(detect(model, pixels, view_sizes=(48, 80)).scores.tolist(), abs=1e-5)
    assert scores != pytest.approx(detect(model, pixels).scores.tolist(), abs=1e-5)
    named = (folder, "--run", trained, "--score-thresh", 0, "--overwrite", "--tta-short-sides")
    assert predict(*named, "48, 80") == 0
    assert [a["score"] for a in read(trained / "predict")["annotations"] if a["image_id"] == 2] == scores
    assert predict(*named, "48,big") == 2
    assert "'48,big' is no list of sizes" in capsys.readouterr().err
    alone = write_detector(tmp_path / "d.safetensors")
    assert predict(folder, "--detector", alone, "--out", tmp_path / "out", "--tta") == 2
    assert "--tta-short-sides 480,576,688" in capsys.readouterr().err


def read(out: Path) -> Any:
    return json.loads((out / "predictions.json").read_text())


def test_predict__one_bad_image_is_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector, folder = write_detector(tmp_path / "d.safetensors"), photos(tmp_path / "photos")
    (folder / "deep" / "bad.jpg").write_bytes(b"not an image")
    arguments = (folder, "--detector", detector, "--out", tmp_path / "out")
    assert predict(*arguments) == 6  # one of three is more than 5 %
    assert "deep/bad.jpg" in capsys.readouterr().err
    assert [i["file_name"] for i in read(tmp_path / "out")["images"]] == ["b.jpg", "deep/a.png"]
    failed = read(tmp_path / "out")["info"]["failed"]
    assert [entry["file_name"] for entry in failed] == ["deep/bad.jpg"]
    assert str(tmp_path) not in failed[0]["reason"]
    assert predict(*arguments, "--overwrite", "--max-failures", 1) == 0


def test_predict__a_thin_image_is_named_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector, folder = write_detector(tmp_path / "d.safetensors"), photos(tmp_path / "photos")
    make_image(
        folder / "line.png", width=1, height=97
    )  # at 96 pixels of the long side, the short one is gone
    make_image(folder / "thin.png", width=1, height=96)
    arguments = (folder, "--detector", detector, "--out", tmp_path / "out", "--max-failures", 1)
    assert predict(*arguments, "--tta-short-sides", "48,80") == 0
    out = read(tmp_path / "out")
    assert [i["file_name"] for i in out["images"]] == ["b.jpg", "deep/a.png", "thin.png"]
    assert [(entry["file_name"], "1 x 97" in entry["reason"]) for entry in out["info"]["failed"]] == [
        ("line.png", True)
    ]


def test_predict__earlier_output_is_kept_unless_overwritten(tmp_path: Path) -> None:
    detector, folder = write_detector(tmp_path / "d.safetensors"), photos(tmp_path / "photos")
    arguments = (folder, "--detector", detector, "--out", folder / "found")
    assert predict(*arguments) == 0
    before = (folder / "found" / "predictions.json").read_bytes()
    assert predict(*arguments) == 4
    assert predict(*arguments, "--resume") == 0  # nothing to do
    assert predict(*arguments, "--overwrite") == 0
    # Pictures of the first run lie below the folder that is searched; they are no images of the user.
    assert (folder / "found" / "predictions.json").read_bytes() == before
    (folder / "b.jpg").unlink()
    assert predict(*arguments, "--overwrite") == 0
    assert [i["file_name"] for i in read(folder / "found")["images"]] == ["a.png"]
    assert not (folder / "found" / "viz" / "b.png").exists()


def test_predict__masks_from_a_prompted_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stages.core.segmenters.loading as segmenters
    from tests.detector_builders import BoxSegmenter

    asked: list[tuple[str, Path | None]] = []

    def load(name: str, weights: Path | None, device: str) -> BoxSegmenter:
        asked.append((name, weights))
        return BoxSegmenter()

    monkeypatch.setattr(segmenters, "load_segmenter", load)
    trained, folder = trained_run(tmp_path / "run"), photos(tmp_path / "photos")
    for split, segmenter in (("pets_test", "sam-vit-h"), ("pets_train", "sam-vit-b")):
        (trained / "wsis" / split).mkdir(parents=True)
        settings = {"segmenter": segmenter, "segmenter_weights": f"{segmenter}.pth"}
        finished(trained / "wsis" / split, "wsis", (), settings)
    (trained / "wsis" / "pets_train" / "pgt_masks.json").write_text("{}")  # what no test split has
    arguments = (folder / "b.jpg", "--run", trained, "--score-thresh", 0, "--masks")
    assert predict(*arguments) == 0
    assert set(asked) == {("sam-vit-b", Path("sam-vit-b.pth"))}, "the segmenter that the run's masks are from"
    data = read(trained / "predict")
    assert data["annotations"]
    for entry in data["annotations"]:
        (mask,) = decode_masks([entry["segmentation"]], 32, 48)
        assert entry["area"] == mask.sum() > 0
        x, y, w, h = entry["bbox"]
        rows, columns = np.nonzero(mask)
        margin = 0.05
        assert columns.min() >= np.floor(x - margin * w)
        assert columns.max() < np.ceil(x + w + margin * w)
        assert rows.min() >= np.floor(y - margin * h)
        assert rows.max() < np.ceil(y + h + margin * h)
    asked.clear()
    assert predict(*arguments, "--segmenter", "sam-nano", "--overwrite") == 0
    assert set(asked) == {("sam-nano", None)}, "weights of another segmenter are not carried over"


def test_predict__masks_of_the_trained_mask_rcnn(tmp_path: Path) -> None:
    trained, folder = trained_run(tmp_path / "run"), photos(tmp_path / "photos")
    checkpoint = write_detector(trained / "wsis" / "pets_train" / "segmenter.safetensors", "mask-rcnn", 1)
    finished(checkpoint.parent, "wsis", (checkpoint.name,))
    assert predict(folder, "--run", trained, "--stage", "wsis", "--score-thresh", 0) == 0
    annotations = read(trained / "predict")["annotations"]
    assert annotations
    assert all(len(a["segmentation"]["size"]) == 2 for a in annotations)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing.jpg", "--detector", "d.safetensors"], 3, "no such image"),
        (["empty", "--detector", "d.safetensors"], 3, "no image found"),
        (["*.jpg", "--detector", "d.safetensors"], 3, "no image found"),
        (["x.png"], 2, "--run RUN (here: runs/pets)"),
        (["x.png", "--run", "empty"], 3, "retrain was not run"),
        (["x.png", "--run", "runs/pets", "--stage", "wsod"], 2, "wsod"),
        (["x.png", "--run", "runs/pets", "--stage", "wsis"], 3, "wsis was not run"),
        (["x.png", "--detector", "absent.safetensors"], 3, "no such checkpoint"),
        (["x.png", "--detector", "wsod.safetensors"], 3, "needs proposals"),
        (["x.png", "--detector", "x.png"], 3, "not a weaksam checkpoint"),
        (["x.png", "--detector", "d.safetensors", "--masks", "--segmenter", "sam-nona"], 2, "sam-nano"),
        (["x.png", "--detector", "d.safetensors", "--score-thresh", "2"], 2, "score-thresh"),
        (["--detector", "d.safetensors"], 2, "IMAGES"),
    ],
)
def test_predict__bad_input(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    make_image(tmp_path / "x.png")
    trained_run(tmp_path / "runs" / "pets")
    write_detector(tmp_path / "d.safetensors")
    save_weights(
        tmp_path / "wsod.safetensors", torch.nn.Linear(1, 1), {"kind": "wsod", "classes": list(CLASSES)}
    )
    assert predict(*arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_predict__unfinished_and_several_detectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_image(tmp_path / "x.png")
    first = write_detector(tmp_path / "run" / "retrain" / "a_train" / "detector.safetensors")
    assert predict(tmp_path / "x.png", "--run", tmp_path / "run") == 3
    assert "has not finished" in capsys.readouterr().err
    finished(first.parent, "retrain", (first.name,))
    second = write_detector(tmp_path / "run" / "retrain" / "b_train" / "detector.safetensors")
    finished(second.parent, "retrain", (second.name,))
    assert predict(tmp_path / "x.png", "--run", tmp_path / "run") == 2
    assert "several detectors" in capsys.readouterr().err
    assert predict(tmp_path / "x.png", "--run", tmp_path / "run", "--detector", second) == 0


def test_open_photos__files_folders_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos(tmp_path / "photos")
    make_image(folder / "c.odd.png").rename(folder / "odd")
    make_image(folder / "deep" / "[x].jpg")
    cases: list[tuple[list[object], list[str]]] = [
        ([folder], ["b.jpg", "deep/[x].jpg", "deep/a.png"]),
        ([folder / "deep", folder / "b.jpg"], ["b.jpg", "deep/[x].jpg", "deep/a.png"]),
        ([folder / "b.jpg", f"{folder}/*.jpg"], ["b.jpg"]),  # named twice, taken once
        ([folder / "odd"], ["odd"]),  # named by itself: the bytes say what it is
        ([f"{folder}/**/*.png"], ["a.png"]),
        ([folder / "deep" / "[x].jpg"], ["[x].jpg"]),  # a name that looks like a pattern
    ]
    for wanted, names in cases:
        split = open_photos([str(w) for w in wanted], CLASSES)
        assert [split.file_name(i) for i in split.ids] == names
        assert all(split.image_path(i).is_file() for i in split.ids)
    monkeypatch.chdir(folder)
    assert open_photos(["deep"], CLASSES, [folder / "elsewhere"]).ids == ("[x].jpg", "a.png")
    with pytest.raises(InputError, match=r"no image found but in .*deep, which is left out.*\n.*--out"):
        open_photos(["deep"], CLASSES, [folder / "deep"])
    (folder / "none").mkdir()
    with pytest.raises(InputError, match=r"no image found\n.*looked for files"):
        open_photos(["none"], CLASSES, [folder / "deep"])
    with pytest.raises(MissingInputError, match="no such image"):
        open_photos(["deeper"], CLASSES)


def test_predict_factory__works_in_another_process(tmp_path: Path) -> None:
    """What workers are sent can be pickled; they draw on their own."""
    split = open_photos([str(photos(tmp_path / "photos"))], CLASSES)
    detector = write_detector(tmp_path / "d.safetensors")
    factory = PredictFactory(
        DetectorFile.open(detector), split, tmp_path / "out", PredictConfig(score_thresh=0), "cpu", "fp32"
    )
    rows = pickle.loads(pickle.dumps(factory))()("b.jpg")  # noqa: S301 - our own bytes
    assert rows.image_columns == {"image_h": 32, "image_w": 48}
    assert len(rows.columns["score"]) > 0
    assert (tmp_path / "out" / "viz" / "b.png").is_file()


def test_picture_names__never_collide() -> None:
    names = picture_names(["a.jpg", "a.png", "b/a.jpg", "B.tif", "c.d.jpg"])
    assert names == {
        "a.jpg": "a.jpg.png", "a.png": "a.png.png", "b/a.jpg": "b/a.png", "B.tif": "B.png", "c.d.jpg": "c.d.png",
    }  # fmt: skip
    names = picture_names(["a.jpg", "a.png", "a.jpg.png", "c.png"])
    assert names == {
        "a.jpg": "a.jpg.png", "a.png": "a.png.png", "a.jpg.png": "a.jpg.png.png", "c.png": "c.png",
    }  # fmt: skip


def test_draw_detections__changes_only_what_lies_under_box_mask_and_label() -> None:
    pixels = np.full((600, 600, 3), 128, np.uint8)
    mask = np.zeros((1, 600, 600), np.uint8)
    mask[0, 250:300, 250:300] = 1
    from stages.core.structures.rle import encode_masks

    boxes = np.array([[240, 240, 360, 360]], np.float32)
    found = Detections(boxes, np.zeros(1, np.int64), np.ones(1, np.float32), encode_masks(mask))
    picture = draw_detections(pixels, found, CLASSES)
    assert picture.shape == pixels.shape
    changed = (picture != 128).any(axis=2)
    assert changed[270, 270], "inside the mask"
    assert changed[240, 300], "the upper side of the box"
    assert not changed[340, 320], "inside the box, outside the mask"
    assert not changed[:200].any()
    assert not changed[400:].any()
