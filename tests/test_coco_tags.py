"""Tags from COCO annotations, and every way in which such files can be bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.core.datasets.catalog import open_split
from stages.core.errors import MissingInputError, SchemaError
from tests.datasets_builders import SCENES, Obj, coco_document, make_coco

Document = dict[str, Any]


def rewrite(folder: Path, change: Callable[[Document], object], subset: str = "train") -> Path:
    path = folder / "annotations" / f"instances_{subset}.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def test_tags__crowds_count_and_images_without_annotations_are_negatives(tmp_path: Path) -> None:
    make_coco(
        tmp_path, "tiny", {"train": {"a": [Obj("dog", crowd=True)], "b": [], "c": [Obj("cat"), Obj("bird")]}}
    )
    split = open_split("tiny_train", tmp_path)
    assert [split.tags(i) for i in split.ids] == [(2,), (), (0, 1)]
    assert not split.problems


def test_classes__by_category_id_with_gaps_and_without_positive_images(tmp_path: Path) -> None:
    make_coco(tmp_path, category_ids=[90, 3, 44])
    split = open_split("tiny_train", tmp_path)
    assert (split.classes, split.category_ids) == (("cat", "dog", "bird"), (3, 44, 90))
    assert [split.tags(i) for i in split.ids] == [(0, 1), (1,), (2,)]


@pytest.mark.parametrize("place", ["train", "images/train", "images", "JPEGImages", "."])
def test_images__found_in_the_usual_folders(tmp_path: Path, place: str) -> None:
    folder = make_coco(tmp_path, "tiny", {"train": SCENES["train"]})
    target = folder / place
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((folder / "train").iterdir()):
        path.rename(target / path.name)
    split = open_split("tiny_train", tmp_path)
    assert len(split) == 3
    assert all(split.image_path(i).is_file() for i in split.ids)


def test_images__file_names_relative_to_the_data_set(tmp_path: Path) -> None:
    folder = make_coco(tmp_path)
    rewrite(folder, lambda d: [i.update(file_name=f"train/{i['file_name']}") for i in d["images"]])
    split = open_split("tiny_train", tmp_path)
    assert (split.file_name("10"), split.image_path("10")) == (
        "train/img_1.jpg",
        folder / "train" / "img_1.jpg",
    )


def test_tags__a_test_file_needs_no_annotations(tmp_path: Path) -> None:
    folder = make_coco(tmp_path)
    rewrite(folder, lambda d: d.pop("annotations"), "test")
    assert len(open_split("tiny_test", tmp_path)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("images"), "'images' is missing"),
        (lambda d: d.update(annotations={}), "'annotations' is missing or not a list"),
        (lambda d: d.update(categories=[], annotations=[]), "no category is declared"),
        (lambda d: d.update(images=[], annotations=[]), "lists no image"),
        (lambda d: d.update(annotations=[]), "none of the 3 images of the train split"),
        (lambda d: d["images"].append(d["images"][0] | {"file_name": "z"}), "image id 10 is used twice"),
        (lambda d: d["images"][1].update(file_name="img_1.jpg"), "share the file_name 'img_1.jpg'"),
        (lambda d: d["categories"].append({"id": 3, "name": "x"}), "category id 3 is used twice"),
        (lambda d: d["categories"][0].update(name="cat"), "share the name 'cat'"),
        (lambda d: d["images"][0].update(id="9"), "some image ids are integers, others text"),
        (lambda d: d["images"][0].update(id=True), "image 0 lacks an 'id'"),
        (lambda d: d["categories"][0].pop("name"), "lacks an integer 'id' or a text 'name'"),
        (lambda d: d["images"][0].update(file_name="../../etc/passwd"), "leaves the image folder"),
        (lambda d: d["annotations"][1].update(category_id=999), "annotation 1 .* category_id 999"),
        (lambda d: d["annotations"][1].update(image_id=[1]), "annotation 1 .* image_id \\[1\\]"),
        (lambda d: d["annotations"].append(None), "annotation 5 is not an object"),
    ],
)
def test_json__bad_files_are_named_with_the_reason(
    tmp_path: Path, change: Callable[[Document], object], message: str
) -> None:
    folder = make_coco(tmp_path)
    path = rewrite(folder, change)
    with pytest.raises(SchemaError, match=message) as caught:
        open_split("tiny_train", tmp_path)
    assert str(path.parent.parent) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [\n  oops', "not valid JSON .*line 2 column 3"),
        ("", "not valid JSON"),
        (b"\xff\xfe{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("[]", "expected a COCO data set .* found list"),
    ],
)
def test_json__malformed_text_is_located(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = make_coco(tmp_path) / "annotations" / "instances_train.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SchemaError, match=message) as caught:
        open_split("tiny_train", tmp_path)
    assert str(path) in str(caught.value)


def test_json__parsed_once_while_it_does_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_coco(tmp_path)
    reads: list[int] = []
    whole = json.loads

    def count(text: Any) -> Any:
        reads.append(len(text))
        return whole(text)

    monkeypatch.setattr("stages.core.datasets.coco.json.loads", count)
    assert open_split("tiny_train", tmp_path) == open_split("tiny_train", tmp_path)
    assert len(reads) == 1
    (folder / "annotations" / "instances_train.json").write_text(
        json.dumps(coco_document({"img_1": [Obj("cat")]}))
    )
    assert len(open_split("tiny_train", tmp_path)) == 1


def test_json__missing(tmp_path: Path) -> None:
    folder = make_coco(tmp_path)
    (folder / "dataset.yaml").write_text("format: coco\nsubsets: {val: {role: test, file: gone.json}}\n")
    with pytest.raises(MissingInputError, match="annotation file does not exist"):
        open_split("tiny_val", tmp_path)
