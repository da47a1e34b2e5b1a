"""The homes of tags: the same photos in every layout give the same tags, and odd ones are told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.core.datasets.catalog import list_splits, open_split
from stages.core.datasets.checking.tags import tag_statistics
from stages.core.errors import SchemaError, UsageError, WeakSamError
from stages.core.evaluation.ground_truth import load_ground_truth
from tests.datasets_builders import make_image
from tests.format_builders import (
    CLASSES,
    LAYOUTS,
    TAGS,
    Tags,
    csv_with_semicolons,
    label_img,
    photos,
    roboflow_coco,
)


@pytest.mark.parametrize("write", LAYOUTS)
def test_layouts__the_same_photos_give_the_same_tags_and_fingerprint(
    tmp_path: Path, write: Callable[[Path, Tags], None]
) -> None:
    for name in ("cards", "plain"):
        (tmp_path / name).mkdir()
    write(tmp_path / "cards", TAGS)
    csv_with_semicolons(tmp_path / "plain", TAGS)
    assert [split for split in list_splits(tmp_path) if split.startswith("cards")] == ["cards_train"]
    split, plain = open_split("cards_train", tmp_path), open_split("plain_train", tmp_path)
    assert split.classes == CLASSES
    assert {
        split.image_path(i).name: tuple(split.classes[t] for t in split.tags(i)) for i in split.ids
    } == TAGS
    assert split.content_fingerprint == plain.content_fingerprint
    assert (tag_statistics(split).summary(), split.problems) == ("ace 2, king 2; 1 negatives", ())


def test_class_folders__images_of_one_name_and_other_content_are_two_images(tmp_path: Path) -> None:
    for seed, kind in enumerate(("ace", "king")):
        make_image(tmp_path / "cards" / "train" / kind / "0.jpg", seed)
        make_image(tmp_path / "cards" / "val" / kind / "0.jpg", seed + 5)
    make_image(tmp_path / "cards" / "train" / "loose.jpg")
    split, test = open_split("cards_train", tmp_path), open_split("cards_val", tmp_path)
    assert (split.ids, split.tags("king__0")) == (("ace__0", "king__0"), (1,))
    assert [(p.id, p.kind) for p in split.problems] == [("loose", "no_tags")]
    assert (test.role, test.classes, test.has_tags, len(test)) == ("test", CLASSES, False, 2)


def test_label_img__boxes_are_ground_truth_and_lie_beside_the_images(tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    label_img(tmp_path / "cards", TAGS)
    found = load_ground_truth("cards_train", tmp_path)
    assert {name: len(image.classes) for name, image in found.images.items()} == {
        "a": 1,
        "b": 1,
        "c": 2,
        "d": 0,
    }


def test_negatives__of_ones_own_name(tmp_path: Path) -> None:
    root = tmp_path / "parts"
    photos(root / "images", TAGS)
    (root / "train.csv").write_text("file_name,tags\na.jpg,defect\nb.jpg,OK\nc.jpg,ok\nd.jpg,\n")
    (root / "dataset.yaml").write_text("format: folder\nnegatives: [ok]\nsubsets: {train: train}\n")
    split = open_split("parts_train", tmp_path)
    assert (split.classes, tag_statistics(split).negatives, [p.id for p in split.problems]) == (
        ("defect",),
        2,
        ["d"],
    )


@pytest.mark.parametrize("write", [csv_with_semicolons, roboflow_coco, label_img])
def test_classes__restrict_any_layout_and_its_ground_truth(
    tmp_path: Path, write: Callable[[Path, Tags], None]
) -> None:
    (tmp_path / "cards").mkdir()
    write(tmp_path / "cards", TAGS)
    whole = open_split("cards_train", tmp_path)
    split = open_split("cards_train", tmp_path, classes=("king",))
    assert (split.classes, split.category_ids) == (("king",), whole.category_ids[1:])
    assert (split.ids, tag_statistics(split).negatives) == (whole.ids, 2)
    assert split.fingerprint != whole.fingerprint
    with pytest.raises(UsageError, match="did you mean 'king'"):
        open_split("cards_train", tmp_path, classes=("kign",))
    if write is label_img:
        truth = load_ground_truth("cards_train", tmp_path, classes=("king",))
        assert sum(len(image.classes) for image in truth.images.values()) == 2


def test_ids__choose_the_images_of_a_subset(tmp_path: Path) -> None:
    root = tmp_path / "cards"
    root.mkdir()
    csv_with_semicolons(root, TAGS)
    entry = "{role: train, file: train.csv, ids: splits/train.txt}"
    (root / "dataset.yaml").write_text(f"format: folder\nsubsets: {{train: {entry}}}\n")
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("c\na\n")
    split = open_split("cards_train", tmp_path)
    assert (split.ids, [split.coco_id(i) for i in split.ids]) == (("a", "c"), [1, 3])
    (root / "splits" / "train.txt").write_text("c\nz\n")
    with pytest.raises(SchemaError, match="lists 'z', which the data set does not have"):
        open_split("cards_train", tmp_path)


@pytest.mark.parametrize(
    ("names", "label", "message"),
    [
        ("[ace]", "1 .5 .5 .2 .2\n", "line 1 begins with '1', expected the number of a class, 0 to 0"),
        ("[ace]", "ace .5 .5 .2 .2\n", "line 1 begins with 'ace'"),
        ("{0: ace, 2: king}", "0 .5 .5 .2 .2\n", "'names' has the numbers"),
        ("ace", "0 .5 .5 .2 .2\n", "neither a list of classes"),
    ],
)
def test_yolo__mistakes_are_named(tmp_path: Path, names: str, label: str, message: str) -> None:
    root = tmp_path / "cards"
    make_image(root / "images" / "a.jpg")
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text(label)
    (root / "data.yaml").write_text(f"train: images\nnames: {names}\n")
    with pytest.raises(WeakSamError, match=message) as caught:
        open_split("cards_train", tmp_path)
    assert str(root) in str(caught.value)
