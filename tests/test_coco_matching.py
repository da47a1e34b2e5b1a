"""Images of COCO files in a split: by file name, whatever their numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.artifacts.coco_json import read_dataset, write_dataset
from stages.core.artifacts.coco_matching import match_images
from stages.core.errors import SchemaError
from stages.core.structures.detections import Detections
from tests.fake_split import FakeSplit


@dataclass(frozen=True)
class NamedSplit(FakeSplit):
    """A split whose images a, b, c have these names."""

    files: tuple[str, ...] = ()

    def file_name(self, image_id: str) -> str:
        return self.files["abcdefghij".index(image_id)]


def split_of(*files: str) -> NamedSplit:
    return NamedSplit(ids=tuple("abcdefghij"[: len(files)]), files=files)


FLAT = split_of("2008_2.jpg", "2008_7.jpg", "caf\u00e9.jpg")
DEEP = split_of("cam1/1.jpg", "cam2/1.jpg", "cam2/9.jpg")


@pytest.mark.parametrize(
    ("split", "files", "expected"),
    [
        (FLAT, {1: "2008_7.jpg", 2: "2008_2.jpg"}, {1: "b", 2: "a"}),  # renumbered by a tool
        (FLAT, {1: "upload/2008_7.jpg"}, {1: "b"}),  # the base name alone
        (FLAT, {1: "C:\\Users\\me\\2008_7.jpg"}, {1: "b"}),
        (FLAT, {1: "../../../2008_7.jpg"}, {1: "b"}),
        (FLAT, {1: "cafe\u0301.jpg"}, {1: "c"}),  # as a Mac writes it
        (FLAT, {"x1": "2008_2.jpg", 2: "other.jpg"}, {"x1": "a"}),
        (DEEP, {1: "cam2/1.jpg", 2: "cam1/1.jpg"}, {1: "b", 2: "a"}),
        (DEEP, {1: "images/cam2/1.jpg"}, {1: "b"}),  # more of the path decides
        (DEEP, {3: "9.jpg", 2: "1.jpg"}, {3: "c", 2: "b"}),  # ids, where they agree with names
        (split_of("train/1.jpg"), {1: "val/1.jpg", 2: "train/1.jpg"}, {2: "a"}),  # a whole name wins
    ],
)
def test_match_images__by_name(split: NamedSplit, files: dict[Any, str], expected: dict[Any, str]) -> None:
    entries = [{"id": number, "file_name": name} for number, name in files.items()]
    matches = match_images(entries, split, Path("d.json"))
    assert matches.image_ids == expected
    assert set(matches.unknown) == set(files) - set(expected)


@pytest.mark.parametrize(
    ("split", "files", "message"),
    [
        (
            DEEP,
            [(1, "9.jpg"), (2, "1.jpg")],
            "'1.jpg' may be any of several images",
        ),  # ids disagree with names
        (DEEP, [(2, "1.jpg")], "may be any of several"),  # no name shows that ids agree
        (FLAT, [(1, "a/2008_2.jpg"), (2, "b/2008_2.jpg")], "are the same image 'a'"),
        (FLAT, [(1, "2008_2.jpg"), (1, "2008_7.jpg")], "image id 1 is used twice"),
        (FLAT, [(1, "2008_3.jpg")], "the first is '2008_3.jpg', the split has '2008_2.jpg'"),
        (FLAT, [(True, "2008_2.jpg")], "image 0 is not a COCO entry with an id"),
        (FLAT, [(1, "../")], "has file_name"),
    ],
)
def test_match_images__refused(split: NamedSplit, files: list[tuple[Any, str]], message: str) -> None:
    entries = [{"id": number, "file_name": name} for number, name in files]
    with pytest.raises(SchemaError, match=message):
        match_images(entries, split, Path("d.json"))


def test_read_dataset__renumbered_and_shuffled_comes_back_to_the_right_images(tmp_path: Path) -> None:
    split = FakeSplit(ids=tuple("abcdefgh"))
    boxes = {
        image_id: Detections(
            np.array([[i, 0, i + 5, 9]], np.float32), np.array([i % 2]), np.ones(1, np.float32)
        )
        for i, image_id in enumerate(split.ids)
    }
    path = tmp_path / "pgt.json"
    write_dataset(path, split, boxes, dict.fromkeys(split.ids, (20, 20)))
    content = json.loads(path.read_text())
    order = np.random.default_rng(0).permutation(8)
    number_of = {int(i) + 1: position + 101 for position, i in enumerate(order)}
    content["images"] = [content["images"][i] | {"id": number_of[int(i) + 1]} for i in order]
    for annotation in content["annotations"]:
        annotation["image_id"] = number_of[annotation["image_id"]]
    content["annotations"].reverse()
    path.write_text(json.dumps(content))
    back = read_dataset(path, split)
    assert back.complete
    assert {name: found.boxes_xyxy[0, 0] for name, found in back.boxes.items()} == {
        name: found.boxes_xyxy[0, 0] for name, found in boxes.items()
    }


def test_read_dataset__says_what_it_took(tmp_path: Path) -> None:
    content = {
        "images": [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate("axby")],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": "0"},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]},
            {"id": 3, "image_id": 2, "category_id": 2, "bbox": [0, 0, 5, 5]},
            {"id": 4, "image_id": 2, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cow"}],
    }
    path = tmp_path / "d.json"
    path.write_text(json.dumps(content))
    taken = read_dataset(path, FakeSplit())
    assert taken.summary() == (
        "1 boxes of 2 images; 2 unknown file names (x.jpg, ...); classes cow ignored; 1 crowds ignored"
    )
    assert {name: len(found) for name, found in taken.boxes.items()} == {"a": 1, "b": 0}
