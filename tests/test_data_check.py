"""`weaksam data`: what a folder is said to be, and what is written about it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.core.datasets.catalog import open_split
from stages.core.datasets.checking.declaring import declare_dataset, stratified
from stages.core.datasets.checking.report import check_dataset
from stages.core.errors import OutputExistsError
from stages.core.evaluation.ground_truth import load_ground_truth
from tests.command_builder import run
from tests.datasets_builders import Obj, make_coco, make_image, make_voc
from tests.format_builders import LAYOUTS, TAGS


def scene(path: Path, seed: int, quality: int = 95, size: int = 96) -> Path:
    """A smooth random picture; another size or quality is nearly the same image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(path, quality=quality)
    return path


def test_check__names_what_is_missing_damaged_doubled_and_in_two_splits(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for i in range(6):
        scene(root / "images" / f"{i}.jpg", i)
    (root / "images" / "copy.jpg").write_bytes((root / "images" / "0.jpg").read_bytes())
    (root / "images" / "cut.jpg").write_bytes((root / "images" / "1.jpg").read_bytes()[:400])
    scene(root / "images" / "smaller.jpg", 2, quality=70, size=64)
    rows = ["0.jpg,cat", "1.jpg,cat", "2.jpg,dog", "copy.jpg,dog", "cut.jpg,cat", "gone.jpg,dog", "3.jpg,"]
    (root / "train.csv").write_text("\n".join(["file_name,tags", *rows]))
    (root / "test.csv").write_text("file_name\n4.jpg\n5.jpg\nsmaller.jpg\n")
    check = check_dataset("pets", tmp_path)
    train = next(split for split in check.splits if split.role == "train")
    assert set(train.left_out) == {"3", "gone", "cut"}
    assert "truncated" in train.left_out["cut"].lower()
    assert check.warnings == [
        "1 images are the same as another of their split: 0 and copy",
        "1 images of two splits are nearly the same: smaller and 2",
        "1 pairs of equal images have other tags: 0 and copy",
    ]
    assert check.problems == []
    assert check_dataset("pets", tmp_path, read_images=False).warnings == []


def test_check_command__a_folder_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_coco(tmp_path)
    code = run("data", "check", str(tmp_path / "tiny"), "--fast", "--json")
    out = capsys.readouterr().out
    found = json.loads(out)
    assert (code, found["layout"], found["classes"]) == (0, "coco", ["bird", "cat", "dog"])
    assert [(s["name"], s["role"], s["images"]) for s in found["splits"]] == [
        ("tiny_test", "test", 2),
        ("tiny_train", "train", 3),
    ]
    code = run("data", "check", "tiny", "--data", str(tmp_path), "--fast", "--classes", "dog")
    out = capsys.readouterr().out
    assert code == 0
    assert "tiny_train: train, 3 images" in out
    assert "negatives (none of the classes): 1 images" in out


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("photos", "holds 1 images (x.jpg, ...) and no tags that are understood"),
        ("empty", "holds no image"),
        ("nowhere", "there is no such folder"),
        ("several", "is a folder of data sets, not one itself; its splits are tiny_test, tiny_train"),
        ("broken", "broken_train: .*annotations.*not valid JSON"),
        ("untrained", "there is no train split"),
    ],
)
def test_check_command__what_is_no_data_set_exits_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    make_image(tmp_path / "photos" / "x.jpg")
    (tmp_path / "empty").mkdir()
    make_voc(tmp_path / "several")
    make_coco(tmp_path, "untrained", {"val": {"a": [Obj("cat")]}})
    broken = make_coco(tmp_path, "broken", {"train": {}})
    (broken / "annotations" / "instances_train.json").write_text("{")
    code = run("data", "check", str(tmp_path / kind))
    out, err = capsys.readouterr()
    assert code == 3
    assert re.search(message if kind == "broken" else re.escape(message), out)
    assert "problem(s) found" in err


@pytest.mark.parametrize("write", LAYOUTS)
def test_declare_dataset__the_file_says_what_was_recognised(tmp_path: Path, write: Any) -> None:
    (tmp_path / "cards").mkdir()
    write(tmp_path / "cards", TAGS)
    before = open_split("cards_train", tmp_path)
    path = declare_dataset("cards", tmp_path, overwrite=True)  # YOLO's file may have this name
    assert path.read_text().startswith("format: ")
    after = open_split("cards_train", tmp_path)
    assert (after.fingerprint, after.classes) == (before.fingerprint, before.classes)
    with pytest.raises(OutputExistsError):
        declare_dataset("cards", tmp_path)


def test_init_command__holds_out_a_stratified_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = {f"{kind}{i}": [Obj(kind)] for kind in ("cat", "dog") for i in range(10)}
    make_voc(tmp_path, "pets", {"train": scenes})
    code = run("data", "init", str(tmp_path / "pets"), "--val", "20%")
    out = capsys.readouterr().out
    assert code == 0
    assert "pets_train, pets_val" in out
    train, val = open_split("pets_train", tmp_path), open_split("pets_val", tmp_path)
    assert (len(train), len(val), val.role, val.train_split) == (16, 4, "test", "pets_train")
    assert set(train.ids).isdisjoint(val.ids)
    assert sorted(i[:3] for i in val.ids) == ["cat", "cat", "dog", "dog"]
    assert len(load_ground_truth("pets_val", tmp_path).images) == 4
    code = run("data", "init", str(tmp_path / "pets"), "--val", "0.1")
    err = capsys.readouterr().err
    assert (code, "--overwrite" in err) == (4, True)
    code = run("data", "init", str(tmp_path / "pets"), "--val", "120%")
    err = capsys.readouterr().err
    assert (code, "no percentage" in err) == (2, True)


def test_stratified__every_class_and_the_negatives_in_proportion() -> None:
    tags: dict[str, tuple[int, ...]] = {f"a{i}": (0,) for i in range(40)}
    tags |= {f"b{i}": (0, 1) for i in range(20)} | {f"c{i}": (2,) for i in range(5)}
    tags |= {f"n{i}": () for i in range(10)}
    chosen = stratified(tags, 0.2, seed=3)
    assert {kind: sum(i[0] == kind for i in chosen) for kind in "abcn"} == {"a": 8, "b": 4, "c": 1, "n": 2}
    assert chosen == stratified(dict(reversed(tags.items())), 0.2, seed=3)
    assert chosen != stratified(tags, 0.2, seed=4)
