"""COCO JSON artifacts: round trips and files that are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.artifacts.coco_json import read_dataset, read_results, write_dataset, write_results
from stages.core.errors import SchemaError
from stages.core.structures.detections import Detections
from stages.core.structures.rle import RLE
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
    back = read_dataset(tmp_path / "d.json", SPLIT).boxes
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
    back = read_dataset(tmp_path / "d.json", SPLIT).boxes["a"].masks
    assert back == [rle]


def result(**changes: Any) -> dict[str, Any]:
    """A result that is as it should be, but for the changes."""
    return {"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 1} | changes


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
        (
            [{"image_id": 1, "category_id": [7], "bbox": [0, 0, 1, 1], "score": 1}],
            r"result 0 .*category \[7\]",
        ),
        ([result(), "text"], "result 1 is not a COCO entry"),
        ([result(), result(bbox=None)], "result 1 has bbox None"),
        ([result(bbox=[0, 0, 1, 1] * 2)], "result 0 has bbox"),  # two boxes in one
        ([result(bbox=[0, 0, "1", 1])], "result 0 has bbox"),
        ([result(bbox=[0, 0, float("nan"), 1])], "result 0 has bbox"),
        ([result(bbox=[5, 5, -1, 1])], "negative width"),
        ([result(), result(score=None)], "result 1 has score None"),
        ([result(score=float("inf"))], "has score inf"),
        ([result(segmentation=[[0, 0, 4, 0, 4, 4]])], "result 0 has a segmentation that is not run lengths"),
    ],
)
def test_read_results__wrong_content(tmp_path: Path, content: Any, expected: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SchemaError, match=expected) as caught:
        read_results(path, SPLIT)
    assert str(path) in str(caught.value)


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
        read_dataset(tmp_path / "d.json", FakeSplit(classes=("sheep", "cow")))


def data_set(**changes: Any) -> dict[str, Any]:
    """A COCO data set with one dog, but for the changes."""
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 10}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 9, "bbox": [1, 2, 5, 4]}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
    } | changes


def read(tmp_path: Path, content: Any) -> Detections:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(content))
    return read_dataset(path, SPLIT).boxes["a"]


@pytest.mark.parametrize(
    ("categories", "dog"),
    [
        ([(7, "cat"), (9, "dog")], 9),  # as the split has them
        ([(9, "cat"), (7, "dog")], 7),  # permuted ids
        ([(0, "cat"), (1, "dog")], 1),  # counted from 0
        ([(9, "dog"), (7, "cat")], 9),  # another order
    ],
)
def test_read_dataset__classes_go_by_name(
    tmp_path: Path, categories: list[tuple[int, str]], dog: int
) -> None:
    content = data_set(categories=[{"id": number, "name": name} for number, name in categories])
    content["annotations"][0]["category_id"] = dog
    found = read(tmp_path, content)
    assert found.classes.tolist() == [SPLIT.classes.index("dog")]
    assert found.scores.tolist() == [1.0]  # of no score


def test_read_dataset__every_form_of_mask(tmp_path: Path) -> None:
    from stages.core.structures.rle import decode_masks, encode_masks

    wanted = np.zeros((1, 8, 10), np.uint8)
    wanted[0, 2:6, 1:6] = 1
    polygon = [[1, 2, 6, 2, 6, 6, 1, 6]]
    runs = np.flatnonzero(np.diff(np.concatenate([[0], wanted[0].flatten("F"), [0]]))).tolist()
    counts = np.diff([0, *runs, 80]).tolist()
    for form in (polygon, {"size": [8, 10], "counts": counts}, encode_masks(wanted)[0]):
        content = data_set()
        content["annotations"][0]["segmentation"] = form
        masks = read(tmp_path, content).masks
        assert masks is not None
        np.testing.assert_array_equal(decode_masks(masks, 8, 10), wanted)
    content["annotations"][0]["segmentation"] = []  # how boxes without masks are often exported
    assert read(tmp_path, content).masks is None


@pytest.mark.parametrize(
    ("changes", "annotation", "expected"),
    [
        ({"categories": ["cat"]}, {}, "category 0 is 'cat'"),
        ({"categories": [{"id": 9, "name": "cow"}]}, {}, "holds classes"),
        ({"categories": {}}, {}, "lists of images, annotations, categories"),
        ({"categories": [{"id": 9, "name": "dog"}, {"id": 9, "name": "cat"}]}, {}, "integer id of its own"),
        ({"images": ["a"]}, {}, "image 0 is not"),
        ({"images": [{"id": 1}]}, {}, "image 0 .id 1. has file_name None"),
        ({"images": [{"id": 1, "file_name": "z.jpg"}]}, {}, "none of its 1 images is in split toy_train"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}]},
            {"segmentation": [[0, 0, 4, 0, 4, 4]]},
            "annotation 0 .* height and width",
        ),
        ({}, {"image_id": 3}, "annotation 0 is not a COCO entry of a listed image"),
        ({}, {"iscrowd": "maybe"}, "annotation 0 has iscrowd 'maybe'"),
        ({"annotations": ["a"]}, {}, "annotation 0 is not"),
        ({}, {"category_id": [9]}, r"annotation 0 has unknown category \[9\]"),
        ({}, {"bbox": [0, 0, 1, 1, 0, 0, 1, 1]}, "annotation 0 has bbox"),
        ({}, {"bbox": [0, float("nan"), 1, 1]}, "annotation 0 has bbox"),
        ({}, {"bbox": [9, 0, -3, 1]}, "annotation 0 .* negative width"),
        ({}, {"score": "high"}, "annotation 0 has score 'high'"),
        ({}, {"segmentation": [[0, 0, 4, 4]]}, "annotation 0 has a polygon"),
        ({}, {"segmentation": {"size": [8, 9], "counts": "0"}}, r"annotation 0 has a mask of size \[8, 9\]"),
    ],
)
def test_read_dataset__wrong_content(
    tmp_path: Path, changes: dict[str, Any], annotation: dict[str, Any], expected: str
) -> None:
    content = data_set(**changes)
    if annotation:
        content["annotations"][0] |= annotation
    with pytest.raises(SchemaError, match=expected) as caught:
        read(tmp_path, content)
    assert "d.json" in str(caught.value)
