"""Splits by name: layouts found by looking, official sets, roles, and what is said when a name is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from stages.core.datasets.catalog import data_root, list_splits, open_split
from stages.core.datasets.layouts import VOC_CLASSES
from stages.core.datasets.subsets import role_of, train_subset_for
from stages.core.errors import ConfigError, MissingInputError, UsageError
from tests.datasets_builders import (
    SCENES,
    Obj,
    Scene,
    coco_document,
    make_coco,
    make_folder,
    make_id_list,
    make_image,
    make_voc,
    make_xml,
)

ONE: Mapping[str, Scene] = {"a": [Obj("cat")]}


@pytest.mark.parametrize(
    ("subset", "role"),
    [
        ("train", "train"), ("trainval", "train"), ("trainaug", "train"), ("train2017", "train"),
        ("seg_train", "train"), ("train_aug", "train"), ("mini-train", "train"), ("val", "test"), ("test", "test"),
        ("minival2014", "test"), ("dev", "test"), ("val2017", "test"), ("seg_val", "test"), ("testing", "test"),
        ("all", None), ("2017", None),
    ],
)  # fmt: skip
def test_role_of__table(subset: str, role: str | None) -> None:
    assert role_of(subset) == role


@pytest.mark.parametrize(
    ("subset", "train_subsets", "expected"),
    [
        ("test", ["train", "trainval", "trainaug"], "trainval"),
        ("test", ["train"], "train"),
        # trainval contains val: evaluating there would be evaluating on training images.
        ("val", ["trainval", "train"], "train"),
        ("val", ["trainval"], "trainval"),
        ("seg_val", ["trainval", "train", "trainaug", "seg_train"], "trainaug"),
        ("seg_val", ["trainval", "train", "seg_train"], "seg_train"),
        ("val2017", ["train2014", "train2017"], "train2017"),
        ("minival2014", ["train2014", "train2017"], "train2014"),
        ("minival", ["train"], "train"),
        ("mini_test", ["train", "mini_train"], "mini_train"),
        ("test", ["train2014"], "train2014"),
        ("test", ["training_b", "training_a"], "training_a"),
        ("test", [], None),
    ],
)
def test_train_subset_for__table(subset: str, train_subsets: list[str], expected: str | None) -> None:
    assert train_subset_for(subset, train_subsets) == expected


@pytest.mark.parametrize("folder", ["VOC2007", "VOCdevkit/VOC2007", "voc07", "voc07/VOCdevkit/VOC2007"])
def test_open_split__voc07_by_its_official_folders(tmp_path: Path, folder: str) -> None:
    scenes = {"trainval": {"000005": [Obj("chair")]}, "test": {"000001": [Obj("dog")]}}
    make_voc(tmp_path, folder, scenes)
    trainval, test = open_split("voc07_trainval", tmp_path), open_split("voc07_test", tmp_path)
    # The canonical twenty, not the two that occur.
    assert trainval.classes == test.classes == VOC_CLASSES == tuple(sorted(VOC_CLASSES))
    assert trainval.tags("000005") == (8,)
    assert (test.train_split, test.dataset, test.subset) == ("voc07_trainval", "voc07", "test")
    assert {"voc07_trainval", "voc07_test"} <= set(list_splits(tmp_path))


def test_open_split__voc12_main_segmentation_and_trainaug(tmp_path: Path) -> None:
    dog, cat = {"2007_01": [Obj("dog")]}, {"2007_02": [Obj("cat")]}
    scenes = {"train": dog, "val": cat, "trainval": dog | cat}
    folder = make_voc(tmp_path, "VOCdevkit/VOC2012", scenes)
    make_id_list(folder, "train", ["2007_01"], kind="Segmentation")
    make_id_list(folder, "val", ["2007_02"], kind="Segmentation")
    published = ["/JPEGImages/2007_01.jpg /SegmentationClassAug/2007_01.png"]
    make_id_list(folder, "train_aug", published, kind="Segmentation")
    # VOC's per-class lists are not splits.
    make_id_list(folder, "dog_train", ["2007_01  1"])
    assert open_split("voc12_trainaug", tmp_path).tags("2007_01") == (VOC_CLASSES.index("dog"),)
    assert open_split("voc12_seg_train", tmp_path).ids == ("2007_01",)
    assert open_split("voc12_seg_val", tmp_path).train_split == "voc12_trainaug"
    assert open_split("voc12_val", tmp_path).train_split == "voc12_train"
    assert "voc12_dog_train" not in list_splits(tmp_path)


@pytest.mark.parametrize("folder", ["coco", "coco2014", "coco14"])
def test_open_split__coco14_by_its_official_names(tmp_path: Path, folder: str) -> None:
    make_coco(tmp_path, folder, {"train2014": SCENES["train"], "val2014": SCENES["test"]})
    minival = coco_document(dict(list(SCENES["test"].items())[:1]))
    (tmp_path / folder / "annotations" / "instances_minival2014.json").write_text(json.dumps(minival))
    assert open_split("coco14_train", tmp_path).role == "train"
    split = open_split("coco14_minival", tmp_path)
    # The images of minival lie among those of val.
    assert split.image_path("10") == tmp_path / folder / "val2014" / "img_4.jpg"
    assert (split.role, split.train_split) == ("test", "coco14_train")
    assert len(open_split("coco14_val", tmp_path)) == 2


def test_open_split__both_years_of_coco_in_one_folder(tmp_path: Path) -> None:
    make_coco(tmp_path, "coco", {"train2014": ONE, "train2017": SCENES["train"], "val2017": SCENES["test"]},
              classes=("bird", "cat", "dog"))  # fmt: skip
    assert len(open_split("coco14_train", tmp_path)) == 1
    assert len(open_split("coco17_train", tmp_path)) == 3
    assert open_split("coco17_val", tmp_path).train_split == "coco17_train"
    assert {"coco17_val", "coco_val2017", "coco14_train"} <= set(list_splits(tmp_path))


def test_open_split__names_with_underscores(tmp_path: Path) -> None:
    make_voc(tmp_path, "my_fruit_set", {"train": ONE, "hard_test": ONE})
    assert open_split("my_fruit_set_train", tmp_path).dataset == "my_fruit_set"
    split = open_split("my_fruit_set_hard_test", tmp_path)
    assert (split.dataset, split.subset, split.train_split) == (
        "my_fruit_set",
        "hard_test",
        "my_fruit_set_train",
    )


def test_open_split__two_layouts_in_one_folder(tmp_path: Path) -> None:
    make_voc(tmp_path)
    make_coco(tmp_path)
    assert open_split("tiny_train", tmp_path).ids == ("img_1", "img_2", "img_3")
    assert open_split("tiny_train", tmp_path, layout="coco").ids == ("10", "20", "30")
    with pytest.raises(MissingInputError, match="a folder-layout data set"):
        open_split("tiny_train", tmp_path, layout="folder")


def test_open_split__a_test_split_without_a_train_split_still_opens(tmp_path: Path) -> None:
    make_coco(tmp_path, "tiny", {"val": SCENES["test"]})
    assert open_split("tiny_val", tmp_path).train_split == "tiny_train"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("tiny_tset", MissingInputError, "did you mean 'tiny_test'"),
        ("tinny_train", MissingInputError, "did you mean 'tiny_train'"),
        ("zebra_x", MissingInputError, "available: .*tiny_test, tiny_train"),
        ("tiny", UsageError, "<dataset>_<subset>"),
        ("_train", UsageError, "<dataset>_<subset>"),
        ("../tiny_train", UsageError, "<dataset>_<subset>"),
        ("bare_train", MissingInputError, "weaksam data check .*bare"),
        ("odd_all", ConfigError, "train or a test split"),
    ],
)
def test_open_split__a_wrong_name_is_answered_with_what_there_is(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    make_voc(tmp_path)
    make_voc(tmp_path, "odd", {"all": ONE, "more": ONE})
    (tmp_path / "bare").mkdir()
    with pytest.raises(error, match=message):
        open_split(name, tmp_path)


def test_open_split__no_data_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"\$WEAKSAM_DATA") as caught:
        open_split("tiny_train", tmp_path / "nowhere")
    assert "nowhere" in str(caught.value)


def test_open_split__missing_images_are_problems_unless_all_are(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    (folder / "JPEGImages" / "img_2.jpg").unlink()
    split = open_split("tiny_train", tmp_path)
    assert split.ids == ("img_1", "img_3")
    assert [(p.id, p.kind) for p in split.problems] == [("img_2", "missing_image")]
    assert split.coco_id("img_3") == 3
    for path in (folder / "JPEGImages").iterdir():
        path.unlink()
    with pytest.raises(MissingInputError, match="none of the 3 images of split tiny_train"):
        open_split("tiny_train", tmp_path)
    (folder / "JPEGImages").rmdir()
    with pytest.raises(MissingInputError, match="folder of images does not exist"):
        open_split("tiny_train", tmp_path)


def test_open_split__a_class_without_any_positive_image_stays_in_the_list(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "tiny", {"train": ONE, "val": {"b": [Obj("zebra")]}})
    make_xml(folder / "Annotations" / "in_no_list.xml", [Obj("yeti")])
    (folder / "Annotations" / "notes.xml").write_text("<oops>")
    split = open_split("tiny_train", tmp_path)
    assert split.classes == ("cat", "zebra")
    assert {tag for i in split.ids for tag in split.tags(i)} == {0}


def test_list_splits__all_layouts_and_the_embedded_set(tmp_path: Path) -> None:
    make_voc(tmp_path, "a")
    make_coco(tmp_path, "b")
    make_folder(tmp_path, "c", yaml=False)
    make_folder(tmp_path, "broken")
    (tmp_path / "broken" / "dataset.yaml").write_text("format: [")
    make_image(tmp_path / "not_a_set" / "x.jpg")
    embedded = ("shapes_test", "shapes_train", "shapes_val")
    assert list_splits(tmp_path) == ("a_test", "a_train", "b_test", "b_train", "c_test", "c_train", *embedded)
    assert list_splits(tmp_path / "nowhere") == embedded


def test_open_split__shapes_are_drawn_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []

    def draw(root: Path) -> Path:
        drawn.append(root)
        return make_voc(root, "shapes")

    monkeypatch.setattr("stages.core.datasets.shapes.dataset.ensure_shapes", draw)
    assert len(open_split("shapes_train", tmp_path)) == 3
    make_voc(tmp_path, "shapeless")
    open_split("shapeless_train", tmp_path)
    assert drawn == [tmp_path]


def test_data_root__given_then_environment_then_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAKSAM_DATA", "/somewhere")
    assert data_root() == Path("/somewhere")
    assert data_root(Path("given")) == Path("given")
    monkeypatch.delenv("WEAKSAM_DATA")
    assert data_root() == Path("data")
