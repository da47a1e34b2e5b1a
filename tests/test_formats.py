"""The homes of tags: the same photos in every layout give the same tags, and odd ones are told apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.core.datasets.catalog import list_splits, open_split
from stages.core.datasets.checking.tags import tag_statistics
from stages.core.errors import SchemaError, UsageError, WeakSamError
from stages.core.evaluation.ground_truth import load_ground_truth
from tests.datasets_builders import Obj, make_image, make_xml

Tags = Mapping[str, tuple[str, ...]]
TAGS: Tags = {"a.jpg": ("ace",), "b.jpg": ("king",), "c.jpg": ("ace", "king"), "d.jpg": ()}
CLASSES = ("ace", "king")


def photos(folder: Path, tags: Tags) -> None:
    """Write the photos; the same name is the same picture in every layout."""
    for name in tags:
        make_image(folder / name, seed=ord(name[0]))


def coco(tags: Tags, *, text_ids: bool = False, empty: bool = False, group: bool = False) -> dict[str, Any]:
    """A COCO document of image-level labels, without boxes."""
    numbers: dict[str, Any] = {n: f"seq-{n}" if text_ids else 40 - i for i, n in enumerate(tags)}
    category = {name: i + 1 for i, name in enumerate(CLASSES)}
    categories = [{"id": i, "name": n, "supercategory": "cards"} for n, i in category.items()]
    if empty:
        category["empty"] = 0
        categories.insert(0, {"id": 0, "name": "empty"})
    if group:
        categories.insert(0, {"id": 0, "name": "cards", "supercategory": "none"})
    shown = [(n, t) for n, own in tags.items() for t in (own or (("empty",) if empty else ()))]
    return {
        "images": [{"id": number, "file_name": name} for name, number in numbers.items()],
        "annotations": [
            {"id": f"x{i}" if text_ids else i, "image_id": numbers[n], "category_id": category[t]}
            for i, (n, t) in enumerate(shown)
        ],
        "categories": categories,
    }


def class_folders(root: Path, tags: Tags) -> None:
    for name, own in tags.items():
        for kind in own or ("background",):
            make_image(root / "train" / kind / name, seed=ord(name[0]))
    make_image(root / "train" / "ace" / ".ipynb_checkpoints" / "a-checkpoint.jpg")


def class_folders_without_subsets(root: Path, tags: Tags) -> None:
    for name, own in tags.items():
        first, *others = own or ("negative",)
        make_image(root / first / name, seed=ord(name[0]))
        for kind in others:
            (root / kind).mkdir(exist_ok=True)
            (root / kind / name).symlink_to(root / first / name)


def csv_with_semicolons(root: Path, tags: Tags) -> None:
    photos(root / "images", tags)
    rows = [f"{name};{','.join(own) or 'background'}" for name, own in tags.items()]
    (root / "train.csv").write_text("\r\n".join(["file_name;tags", *rows]), encoding="utf-8-sig")


def yolo(root: Path, tags: Tags) -> None:
    photos(root / "train" / "images", tags)
    (root / "train" / "labels").mkdir()
    for name, own in tags.items():
        lines = [f"{CLASSES.index(kind)} .5 .5 .2 .2\n" for kind in own]
        (root / "train" / "labels" / name).with_suffix(".txt").write_text("".join(lines))
    (root / "data.yaml").write_text("train: ../train/images\nnc: 2\nnames: [ace, king]\n")


def yolo_as_dataset_yaml(root: Path, tags: Tags) -> None:
    photos(root / "images" / "train", tags)
    (root / "labels" / "train").mkdir(parents=True)
    for name, own in tags.items():
        lines = [f"{CLASSES.index(kind)} .1 .1 .4 .1 .4 .4\n" for kind in own]  # polygons
        (root / "labels" / "train" / name).with_suffix(".txt").write_text("".join(lines))
    (root / "dataset.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: ace\n  1: king\n")


def camera_traps(root: Path, tags: Tags) -> None:
    photos(root / "images", tags)
    (root / "traps.json").write_text(json.dumps(coco(tags, text_ids=True, empty=True)))


def roboflow_coco(root: Path, tags: Tags) -> None:
    photos(root / "train", tags)
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(coco(tags, group=True)))


def cvat_coco(root: Path, tags: Tags) -> None:
    photos(root / "images" / "train", tags)
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(json.dumps(coco(tags)))


def fiftyone(root: Path, tags: Tags) -> None:
    photos(root / "data", tags)
    (root / "labels.json").write_text(json.dumps(coco(tags)))


def hub_metadata(root: Path, tags: Tags) -> None:
    photos(root / "train", tags)
    rows = [{"file_name": name, "label": list(own) or ["background"]} for name, own in tags.items()]
    (root / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def roboflow_multi_label(root: Path, tags: Tags) -> None:
    photos(root / "train", tags)
    rows = [f"{name}, {int('ace' in own)}, {int('king' in own)}" for name, own in tags.items()]
    (root / "train" / "_classes.csv").write_text("\n".join(["filename, ace, king", *rows]))


def label_img(root: Path, tags: Tags) -> None:
    photos(root / "train", tags)
    for name, own in tags.items():
        make_xml((root / "train" / name).with_suffix(".xml"), [Obj(kind) for kind in own])
    (root / "train" / "._a.xml").write_bytes(b"\x00Mac OS X")
    (root / "train_labels.csv").write_text("filename,class\na.jpg,joker\n")


def xml_next_to_images(root: Path, tags: Tags) -> None:
    photos(root / "images", tags)
    for name, own in tags.items():
        make_xml((root / "annotations" / name).with_suffix(".xml"), [Obj(kind) for kind in own])


def labelme(root: Path, tags: Tags) -> None:
    photos(root, tags)
    for name, own in tags.items():
        shapes = [{"label": kind, "points": [[1, 1], [9, 9]]} for kind in own]
        (root / name).with_suffix(".json").write_text(json.dumps({"shapes": shapes, "imagePath": name}))


def label_studio(root: Path, tags: Tags) -> None:
    photos(root / "images", tags)
    tasks = [
        {
            "data": {"image": f"/data/upload/3/0a1b2c3d-{name}"},
            "annotations": [{"result": [{"value": {"choices": list(own) or ["Background"]}}]}],
        }
        for name, own in tags.items()
    ]
    (root / "export.json").write_text(json.dumps(tasks))


LAYOUTS = [
    class_folders, class_folders_without_subsets, csv_with_semicolons, yolo, yolo_as_dataset_yaml, camera_traps,
    roboflow_coco, cvat_coco, fiftyone, hub_metadata, roboflow_multi_label, label_img, xml_next_to_images, labelme,
    label_studio,
]  # fmt: skip


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
