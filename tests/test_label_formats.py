"""Boxes in the forms of other tools: each is read back with what reads that form."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from stages.core.artifacts.exchange.label_formats import (
    LABEL_FORMATS,
    LabelFormat,
    read_labeled_images,
    write_labels,
)
from stages.core.datasets.catalog import open_split
from stages.core.errors import SchemaError
from stages.core.evaluation.ground_truth import load_ground_truth
from tests.command_builder import run
from tests.datasets_builders import make_image


def document(**changes: Any) -> dict[str, Any]:
    """Predictions of two images, one without a box."""
    return {
        "images": [
            {"id": 1, "file_name": "cam1/a.jpg", "width": 48, "height": 32},
            {"id": 2, "file_name": "b.jpg", "width": 48, "height": 32},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 9, "bbox": [4, 6, 20, 20], "score": 0.25},
            {"id": 2, "image_id": 1, "category_id": 7, "bbox": [0, 0, 48, 16], "score": 0.75},
        ],
        "categories": [{"id": 7, "name": "ca<t"}, {"id": 9, "name": 'd"og, big'}],
    } | changes


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(document()))
    return path


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_write_labels__our_own_readers_take_them(
    tmp_path: Path, predictions: Path, form: LabelFormat
) -> None:
    root = tmp_path / "data" / "pets"
    write_labels(predictions, form, root)
    for name in ("cam1/a.jpg", "b.jpg"):
        make_image(root / "images" / name)
    split = open_split("pets_train", tmp_path / "data")
    assert set(split.classes) == {"ca<t", 'd"og, big'}
    assert {i: len(split.tags(i)) for i in split.ids} == {"cam1__a": 2, "b": 0}
    if form == "voc":
        found = load_ground_truth("pets_train", tmp_path / "data").images["cam1__a"]
        assert found.boxes_xyxy.tolist() == [[0, 0, 48, 16], [4, 6, 24, 26]]
    else:
        first = (root / "labels" / "cam1" / "a.txt").read_text().splitlines()[0].split()
        assert [float(word) for word in first] == [0, 0.5, 0.25, 1.0, 0.5]


def test_write_labels__csv_and_label_studio(tmp_path: Path, predictions: Path) -> None:
    table = write_labels(predictions, "csv", tmp_path / "csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(r["file_name"], r["class"], r["score"], r["x2"]) for r in rows] == [
        ("cam1/a.jpg", "ca<t", "0.7500", "48.00"),
        ("cam1/a.jpg", 'd"og, big', "0.2500", "24.00"),
    ]
    tasks = json.loads(write_labels(predictions, "labelstudio", tmp_path / "ls").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=cam1/a.jpg",
        "/data/local-files/?d=b.jpg",
    ]
    (first, _) = tasks[0]["predictions"][0]["result"]
    assert first["value"] == {
        "x": 0, "y": 0, "width": 100, "height": 50, "rotation": 0, "rectanglelabels": ["ca<t"]
    }  # fmt: skip
    assert 'value="d&quot;og, big"' in (tmp_path / "ls" / "labels.xml").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {}}, "lists of images"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}, "lacks a field"),
        (
            {"images": [{"id": 1, "file_name": "../a.jpg", "width": 1, "height": 1}], "annotations": []},
            "no image below",
        ),
        (
            {"annotations": [{"image_id": 1, "category_id": 8, "bbox": [0, 0, 1, 1]}]},
            "unknown image or category",
        ),
        ({"annotations": [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 1]}]}, "has bbox"),
    ],
)
def test_read_labeled_images__mistakes_name_the_file(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(document(**changes)))
    with pytest.raises(SchemaError, match=message) as caught:
        read_labeled_images(path)
    assert str(path) in str(caught.value)


def test_write_labels__two_images_of_one_stem_are_not_mixed(tmp_path: Path) -> None:
    names = [{"id": i, "file_name": f"a.{s}", "width": 9, "height": 9} for i, s in enumerate(("jpg", "png"))]
    path = tmp_path / "d.json"
    path.write_text(json.dumps(document(images=names, annotations=[])))
    with pytest.raises(SchemaError, match=r"'a.jpg' and 'a.png' would both"):
        write_labels(path, "yolo", tmp_path / "out")


def test_convert_command__every_form_once(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for form in LABEL_FORMATS for word in ("--format", form)]
    assert run("convert", str(tmp_path), *flags, "--json") == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert set(written) == set(LABEL_FORMATS)
    assert all(
        Path(path).exists() and Path(path).is_relative_to(tmp_path / "labels") for path in written.values()
    )
    assert run("convert", str(predictions), "--format", "csv") == 4
    assert run("convert", str(predictions), "--format", "csv", "--overwrite") == 0
    assert run("convert", str(predictions)) == 2
    assert run("convert", str(tmp_path / "labels"), "--format", "csv") == 3
