"""``dataset.yaml``: what it may say, and what is said about mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.datasets.catalog import open_split
from stages.core.errors import ConfigError, SchemaError
from tests.datasets_builders import SCENES, make_coco, make_voc


def write_yaml(folder: Path, text: str) -> Path:
    path = folder / "dataset.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_dataset_yaml__voc_with_its_own_paths_classes_and_roles(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    (folder / "Annotations").rename(folder / "xml")
    (folder / "JPEGImages").rename(folder / "photos")
    (folder / "ImageSets" / "Main" / "train.txt").rename(folder / "seen.txt")
    (folder / "ImageSets" / "Main" / "test.txt").rename(folder / "unseen.txt")
    write_yaml(
        folder,
        "format: voc\nclasses: [dog, cat, bird]\nimages: photos\nannotations: xml\nsubsets:\n"
        "  seen: {role: train, file: seen.txt}\n  unseen: {role: test, file: unseen.txt, train_split: seen}\n",
    )
    seen, unseen = open_split("tiny_seen", tmp_path), open_split("tiny_unseen", tmp_path)
    assert seen.classes == unseen.classes == ("dog", "cat", "bird")
    assert [seen.tags(i) for i in seen.ids] == [(0, 1), (0,), (2,)]
    assert (unseen.role, unseen.train_split) == ("test", "tiny_seen")


def test_dataset_yaml__overrules_the_role_a_name_suggests(tmp_path: Path) -> None:
    write_yaml(make_voc(tmp_path), "format: voc\nsubsets: {train: test, test: train}\n")
    assert open_split("tiny_train", tmp_path).role == "test"
    assert open_split("tiny_train", tmp_path).train_split == "tiny_test"


def test_dataset_yaml__coco_classes_choose_the_order(tmp_path: Path) -> None:
    folder = make_coco(tmp_path)
    write_yaml(folder, "format: coco\nclasses: [dog, bird, cat]\nsubsets: {train: train, test: test}\n")
    split = open_split("tiny_train", tmp_path)
    assert (split.classes, split.category_ids) == (("dog", "bird", "cat"), (7, 3, 5))
    assert split.tags("10") == (0, 2)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("[dog, bird, cat, zebra]", "declared class 'zebra' is not one of its categories"),
        ("[dog, bird, cats]", "did you mean 'cat'"),
        ("[dog, bird]", "category 'cat' is not one of the declared classes"),
    ],
)
def test_dataset_yaml__coco_classes_must_be_the_categories(
    tmp_path: Path, classes: str, message: str
) -> None:
    write_yaml(make_coco(tmp_path), f"format: coco\nclasses: {classes}\nsubsets: {{train: train}}\n")
    with pytest.raises(SchemaError, match=message):
        open_split("tiny_train", tmp_path)


def test_dataset_yaml__a_named_image_folder_is_not_guessed_around(tmp_path: Path) -> None:
    folder = make_coco(tmp_path, "tiny", {"train": SCENES["train"]})
    write_yaml(folder, "format: coco\nimages: tarin\nsubsets: {train: train}\n")
    with pytest.raises(Exception, match="tarin"):
        open_split("tiny_train", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: [", "not valid YAML"),
        ("just text", "expected a mapping"),
        ("format: voc\n", "'subsets': Field required"),
        ("format: vco\nsubsets: {train: train}\n", "'format': .*'voc', 'coco', 'folder'"),
        (
            "format: voc\nclases: [a]\nsubsets: {train: train}\n",
            "unknown key 'clases'(.|\n)*did you mean 'classes'",
        ),
        (
            "format: voc\nsubsets: {train: {rle: train}}\n",
            "unknown key 'subsets.train.rle'(.|\n)*did you mean 'role'",
        ),
        ("format: voc\nsubsets: {train: tarin}\n", "'subsets.train'"),
        ("format: voc\nclasses: [a, b, a]\nsubsets: {train: train}\n", "class 'a' is listed twice"),
        ("format: voc\nclasses: []\nsubsets: {train: train}\n", "'classes'"),
        ("format: voc\nclasses: [1, 2]\nsubsets: {train: train}\n", "'classes.0'"),
        (
            "format: voc\nsubsets: {train: train, test: {role: test, train_split: trian}}\n",
            "train_split 'trian'(.|\n)*did you mean 'train'",
        ),
    ],
)
def test_dataset_yaml__mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write_yaml(make_voc(tmp_path), text)
    with pytest.raises(ConfigError, match=message) as caught:
        open_split("tiny_train", tmp_path)
    assert str(path) in str(caught.value)
