"""Files for the servers of VOC and COCO: names, coordinates, colours; and what `evaluate` says without ground truth."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.core.artifacts.coco_json import write_results
from stages.core.artifacts.exchange.submissions import voc_palette
from stages.core.datasets.catalog import open_split
from stages.core.structures.detections import Detections
from stages.core.structures.rle import encode_masks
from tests.command_builder import weaksam
from tests.datasets_builders import HEIGHT, WIDTH, make_voc
from weaksam_cli.exporting import submissions_of


def results(root: Path, masks: bool = False) -> Path:
    """Detections of two classes in the first image of the test split."""
    split = open_split("voc12_test", root)
    drawn = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    drawn[0, 2:8, 1:5], drawn[1, 4:9, 3:9] = 1, 1
    found = Detections(
        np.array([[1, 2, 5, 8], [3, 4, 9, 9]], np.float32),
        np.array([2, 0]),
        np.array([0.25, 0.75] if not masks else [0.5, 0.75], np.float32),
        encode_masks(drawn) if masks else None,
    )
    path = root / ("segmentations.json" if masks else "detections.json")
    write_results(path, split, {split.ids[0]: found})
    return path


def data(tmp_path: Path) -> Path:
    make_voc(tmp_path, "voc12")
    return tmp_path


def test_export__voc_files_are_one_based_and_inclusive(tmp_path: Path) -> None:
    root = data(tmp_path)
    split = open_split("voc12_test", root)
    path, out = results(root), tmp_path / "out"
    assert weaksam("export", path, "--split", "voc12_test", "--data", root, "--out", out) == 0
    files = sorted(file.name for file in (out / "Main").iterdir())
    assert files == sorted(f"comp4_det_test_{name}.txt" for name in split.classes)
    text = (out / "Main" / f"comp4_det_test_{split.classes[2]}.txt").read_text()
    assert text == f"{split.ids[0]} 0.250000 2.000 3.000 5.000 8.000\n"  # columns 1 to 4 are pixels 2 to 5
    assert (out / "Main" / f"comp4_det_test_{split.classes[1]}.txt").read_text() == ""
    assert weaksam("export", path, "--split", "voc12_test", "--data", root, "--out", out) == 4
    words = ("export", path, "--split", "voc12_test", "--data", root, "--out", out, "--overwrite")
    assert weaksam(*words, "--trained-on", "own") == 0
    assert (out / "Main" / f"comp3_det_test_{split.classes[2]}.txt").is_file()


def test_export__voc_label_images_have_the_better_mask_on_top(tmp_path: Path) -> None:
    root, out = data(tmp_path), tmp_path / "out"
    path = results(root, masks=True)
    assert weaksam("export", path, "--split", "voc12_test", "--data", root, "--out", out) == 0
    split = open_split("voc12_test", root)
    files = {file.stem: Image.open(file) for file in (out / "Segmentation" / "comp6_test_cls").iterdir()}
    assert files.keys() == set(split.ids)
    labels = np.asarray(files[split.ids[0]])
    assert labels.shape == (HEIGHT, WIDTH)
    assert (labels[3, 2], labels[5, 4], labels[0, 0]) == (3, 1, 0)  # class + 1; the second mask scores higher
    assert files[split.ids[0]].getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]  # type: ignore[index]
    assert voc_palette()[255].tolist() == [224, 224, 192]


def test_export__coco_zip_is_named_as_its_server_wants(tmp_path: Path) -> None:
    root, out = data(tmp_path), tmp_path / "out"
    words = (
        "export",
        results(root),
        "--split",
        "voc12_test",
        "--data",
        root,
        "--out",
        out,
        "--format",
        "coco",
    )
    assert weaksam(*words, "--subset", "test-dev2017", "--name", "mine") == 0
    assert [file.name for file in out.iterdir()] == ["detections_test-dev2017_mine_results.zip"]
    with zipfile.ZipFile(out / "detections_test-dev2017_mine_results.zip") as archive:
        (name,) = archive.namelist()
        assert name == "detections_test-dev2017_mine_results.json"
        assert len(json.loads(archive.read(name))) == 2


def test_export__results_of_unknown_images_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = data(tmp_path)
    path = results(root)
    path.write_text(json.dumps([entry | {"image_id": 99} for entry in json.loads(path.read_text())]))
    assert weaksam("export", path, "--split", "voc12_test", "--data", root, "--out", tmp_path / "out") == 3
    assert "not in split voc12_test" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_submissions_of__test_splits_without_ground_truth_alone(tmp_path: Path) -> None:
    root = data(tmp_path)
    path = results(root)
    row = {
        "stage": "retrain",
        "split": "voc12_test",
        "artifact": path.name,
        "task": "detections",
        "limit": None,
    }
    rows = [
        row | {"problem": "none"},
        row | {"stage": "wsod", "problem": None},
        row | {"task": "cams", "problem": "x"},
    ]
    (line,) = submissions_of({"test": "voc12_test", "rows": rows}, root, root)
    assert "no ground truth" in line
    assert (root / "submission" / "retrain" / "Main" / "comp4_det_test_cat.txt").is_file()
    assert not (root / "submission" / "wsod").exists()
