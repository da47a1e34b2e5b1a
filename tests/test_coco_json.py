"""COCO JSON artifacts: round trips and files that are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.artifacts.coco_json import (
    RLE,
    Detections,
    read_dataset,
    read_results,
    write_dataset,
    write_results,
)
from stages.core.errors import SchemaError
from tests.fake_split import FakeSplit

SPLIT = FakeSplit()


def boxes(
    *items: tuple[float, float, float, float, int, float], masks: list[RLE] | None = None
) -> Detections:
    array = np.array(items, dtype=np.float64).reshape(-1, 6)
    return Detections(
        array[:, :4].astype(np.float32), array[:, 4].astype(np.int64), array[:, 5].astype(np.float32), masks
    )


def test_write_results__round_trip(tmp_path: Path) -> None:
    found = {"a": boxes((1, 2, 11, 22, 1, 0.5), (0, 0, 3.25, 4, 0, 0.25))}
    write_results(tmp_path / "r.json", SPLIT, found)
    raw = json.loads((tmp_path / "r.json").read_text())
    assert raw[0] == {"image_id": 1, "category_id": 9, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.5}
    back = read_results(tmp_path / "r.json", SPLIT)
    assert set(back) == set(SPLIT.ids)
    np.testing.assert_array_equal(back["a"].boxes_xyxy, found["a"].boxes_xyxy)
    assert back["a"].classes.tolist() == [1, 0]
    assert len(back["b"]) == 0


def test_write_dataset__coco_fields(tmp_path: Path) -> None:
    sizes = {"a": (40, 30), "b": (10, 20)}
    write_dataset(tmp_path / "d.json", SPLIT, {"a": boxes((1, 2, 11, 22, 1, 0.5))}, sizes)
    raw = json.loads((tmp_path / "d.json").read_text())
    assert raw["images"] == [
        {"id": 1, "file_name": "a.jpg", "height": 40, "width": 30},
        {"id": 2, "file_name": "b.jpg", "height": 10, "width": 20},
    ]
    (annotation,) = raw["annotations"]
    assert (annotation["id"], annotation["area"], annotation["iscrowd"]) == (1, 200.0, 0)
    assert raw["categories"] == [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    back = read_dataset(tmp_path / "d.json", SPLIT)
    assert set(back) == {"a", "b"}
    assert back["a"].scores.tolist() == [0.5]


def test_write_dataset__masks_give_the_area(tmp_path: Path) -> None:
    from pycocotools import mask as coco_mask

    pixels = np.zeros((8, 8), dtype=np.uint8, order="F")
    pixels[2:4, 1:6] = 1
    encoded = coco_mask.encode(pixels)
    rle: RLE = {"size": [8, 8], "counts": encoded["counts"].decode()}
    write_dataset(tmp_path / "d.json", SPLIT, {"a": boxes((1, 2, 6, 4, 0, 1.0), masks=[rle])}, {"a": (8, 8)})
    assert json.loads((tmp_path / "d.json").read_text())["annotations"][0]["area"] == 10
    back = read_dataset(tmp_path / "d.json", SPLIT)["a"].masks
    assert back == [rle]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not valid JSON"),
        ("{}", "expected a list"),
        ([{"image_id": "a", "category_id": 7, "bbox": [0, 0, 1, 1], "score": 1}], "integer image_id"),
        ([{"image_id": 99, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 1}], "not in split"),
        (
            [{"image_id": 4, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 1}],
            "not in split",
        ),  # beyond --limit
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], "category 1"),
        ([{"image_id": 1, "category_id": [7], "bbox": [0, 0, 1, 1], "score": 1}], "category"),
        ([{"image_id": 1, "category_id": 7, "score": 1}], "lacks bbox"),
        ([{"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1]}], "score"),
        ([{"image_id": 1, "category_id": 7, "bbox": [0] * 8, "score": 1}], "four numbers"),
        ([{"image_id": 1, "category_id": 7, "bbox": [0, 0, -1, 1], "score": 1}], "image 1: .* is no box"),
        ('[{"image_id": 1, "category_id": 7, "bbox": [0, 0, NaN, 1], "score": 1}]', "is no box"),
    ],
)
def test_read_results__wrong_content(tmp_path: Path, content: Any, expected: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SchemaError, match=expected) as caught:
        read_results(path, SPLIT)
    assert str(path) in str(caught.value)


def test_read_dataset__categories_go_by_name(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d.json", SPLIT, {"a": boxes((1, 2, 11, 22, 1, 0.5))}, {"a": (40, 30)})
    raw = json.loads((tmp_path / "d.json").read_text())
    raw["categories"] = [{"id": 0, "name": "dog"}, {"id": 7, "name": "cat"}]  # another order, other numbers
    raw["annotations"][0]["category_id"] = 0
    (tmp_path / "d.json").write_text(json.dumps(raw))
    assert read_dataset(tmp_path / "d.json", SPLIT)["a"].classes.tolist() == [1]
    raw["categories"][1]["id"] = 0
    (tmp_path / "d.json").write_text(json.dumps(raw))
    with pytest.raises(SchemaError, match="give each its own"):
        read_dataset(tmp_path / "d.json", SPLIT)


@pytest.mark.parametrize(
    "broken", [{"images": [3]}, {"images": {}}, {"categories": 4}, {"annotations": None}]
)
def test_read_dataset__not_a_data_set(tmp_path: Path, broken: dict[str, Any]) -> None:
    write_dataset(tmp_path / "d.json", SPLIT, {}, {"a": (1, 1)})
    (tmp_path / "d.json").write_text(json.dumps(json.loads((tmp_path / "d.json").read_text()) | broken))
    with pytest.raises(SchemaError):
        read_dataset(tmp_path / "d.json", SPLIT)


def test_read_dataset__other_classes(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d.json", SPLIT, {}, {"a": (1, 1)})
    with pytest.raises(SchemaError, match="classes"):
        read_dataset(tmp_path / "d.json", FakeSplit(classes=("cat", "cow")))
