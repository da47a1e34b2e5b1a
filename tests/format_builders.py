"""The same tags in every home that tools give them: one writer per layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
