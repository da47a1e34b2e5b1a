"""Boxes of a COCO data set (predictions, pseudo ground truth) in the forms that other tools open.

``yolo``: ``data.yaml`` and a text file per image; ``voc``: an XML file per image; ``csv``: one table; ``labelstudio``:
tasks with predictions. File names are those of the data set, relative to the folder of its images.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import yaml

from stages.core.artifacts.coco_fields import box_xywh, score_of
from stages.core.artifacts.files import read_json, write_json, write_text
from stages.core.errors import SchemaError

LabelFormat = Literal["yolo", "voc", "csv", "labelstudio"]
LABEL_FORMATS: tuple[LabelFormat, ...] = get_args(LabelFormat)


@dataclass(frozen=True)
class LabeledBox:
    """One box: class name, score, and half-open corners in pixels."""

    label: str
    score: float
    xyxy: tuple[float, float, float, float]


@dataclass(frozen=True)
class LabeledImage:
    """One image: its file name below the image folder, its size in pixels and its boxes."""

    file_name: str
    width: int
    height: int
    boxes: tuple[LabeledBox, ...]


def write_labels(source: Path, format_name: LabelFormat, out: Path) -> Path:
    """Write a COCO data set in another form.

    Args:
        source: ``predictions.json``, ``pgt.json`` or any other COCO data set.
        format_name: One of ``LABEL_FORMATS``.
        out: Folder, which is made.

    Returns:
        The file that says the most: ``data.yaml``, the folder of XML, the CSV or the tasks.

    Raises:
        SchemaError: no COCO data set, an image without a size, a name that leaves the folder, or two images whose
            labels would be one file.
    """
    classes, images = read_labeled_images(source)
    return _WRITERS[format_name](classes, images, out)


def read_labeled_images(source: Path) -> tuple[list[str], list[LabeledImage]]:
    """Class names in the order of their ids, and every image with its boxes, the best first.

    Raises:
        SchemaError: as :func:`write_labels`.
    """
    loaded = read_json(source)
    sections = ("images", "annotations", "categories")
    if not isinstance(loaded, dict) or not all(isinstance(loaded.get(name), list) for name in sections):
        raise SchemaError(f"expected a COCO data set with lists of {', '.join(sections)}", where=source)
    try:
        names = {int(entry["id"]): str(entry["name"]) for entry in loaded["categories"]}
        boxes: dict[Any, list[LabeledBox]] = {entry["id"]: [] for entry in loaded["images"]}
        for entry in loaded["annotations"]:
            x, y, width, height = box_xywh(entry)
            box = LabeledBox(names[entry["category_id"]], score_of(entry, 1.0), (x, y, x + width, y + height))
            boxes[entry["image_id"]].append(box)
        images = [
            LabeledImage(
                str(entry["file_name"]),
                int(entry["width"]),
                int(entry["height"]),
                tuple(sorted(boxes[entry["id"]], key=lambda box: -box.score)),
            )
            for entry in loaded["images"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"an entry lacks a field, names an unknown image or category, or {error}",
            where=source,
            hint="use predictions.json, pgt.json or another whole COCO data set",
        ) from error
    for image in images:
        path = PurePosixPath(image.file_name)
        if path.is_absolute() or ".." in path.parts or image.width < 1 or image.height < 1:
            raise SchemaError(
                f"image '{image.file_name}' of {image.width} x {image.height} pixels is no image below a folder",
                where=source,
            )
    return [names[number] for number in sorted(names)], images


def _beside(images: Sequence[LabeledImage], folder: Path, suffix: str) -> list[Path]:
    """The label file of every image: its path with another suffix.

    Raises:
        SchemaError: two images differ in their suffix alone.
    """
    paths = [folder / PurePosixPath(image.file_name).with_suffix(suffix) for image in images]
    owner: dict[Path, str] = {}
    for path, image in zip(paths, images, strict=True):
        if path in owner:
            raise SchemaError(
                f"'{owner[path]}' and '{image.file_name}' would both be described by {path.name}",
                hint="rename one of the images, or use --format csv",
            )
        owner[path] = image.file_name
    return paths


def _write_yolo(classes: Sequence[str], images: Sequence[LabeledImage], out: Path) -> Path:
    number = {name: i for i, name in enumerate(classes)}
    for path, image in zip(_beside(images, out / "labels", ".txt"), images, strict=True):
        lines = []
        for box in image.boxes:
            x1, y1, x2, y2 = box.xyxy
            center = ((x1 + x2) / 2 / image.width, (y1 + y2) / 2 / image.height)
            size = ((x2 - x1) / image.width, (y2 - y1) / image.height)
            lines.append(" ".join([str(number[box.label]), *(f"{value:.6f}" for value in (*center, *size))]))
        write_text(path, "".join(f"{line}\n" for line in lines))
    document = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(classes))}
    write_text(out / "data.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    return out / "data.yaml"


def _write_voc(classes: Sequence[str], images: Sequence[LabeledImage], out: Path) -> Path:
    folder = out / "Annotations"
    for path, image in zip(_beside(images, folder, ".xml"), images, strict=True):
        root = ElementTree.Element("annotation")
        _texts(root, {"filename": PurePosixPath(image.file_name).name})
        _texts(
            ElementTree.SubElement(root, "size"), {"width": image.width, "height": image.height, "depth": 3}
        )
        for box in image.boxes:
            item = ElementTree.SubElement(root, "object")
            _texts(item, {"name": box.label, "pose": "Unspecified", "truncated": 0, "difficult": 0})
            _texts(item, {"score": f"{box.score:.4f}"})
            x1, y1, x2, y2 = (round(value) for value in box.xyxy)
            # VOC counts pixels from 1 and includes the last ones.
            corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": max(x2, x1 + 1), "ymax": max(y2, y1 + 1)}
            _texts(ElementTree.SubElement(item, "bndbox"), corners)
        ElementTree.indent(root)
        write_text(path, ElementTree.tostring(root, encoding="unicode") + "\n")
    return folder


def _texts(parent: ElementTree.Element, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = str(value)


def _write_csv(classes: Sequence[str], images: Sequence[LabeledImage], out: Path) -> Path:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file_name", "class", "score", "x1", "y1", "x2", "y2"))
    for image in images:
        for box in image.boxes:
            corners = (f"{value:.2f}" for value in box.xyxy)
            table.writerow((image.file_name, box.label, f"{box.score:.4f}", *corners))
    write_text(out / "boxes.csv", text.getvalue())
    return out / "boxes.csv"


def _write_labelstudio(classes: Sequence[str], images: Sequence[LabeledImage], out: Path) -> Path:
    write_json(out / "tasks.json", [_task(image) for image in images], indent=2)
    labels = "".join(f'\n    <Label value="{_attribute(name)}"/>' for name in classes)
    write_text(
        out / "labels.xml",
        '<View>\n  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">'
        f"{labels}\n  </RectangleLabels>\n</View>\n",
    )
    return out / "tasks.json"


def _attribute(text: str) -> str:
    from xml.sax.saxutils import escape

    return escape(text, {'"': "&quot;"})


def _task(image: LabeledImage) -> dict[str, Any]:
    results = []
    for box in image.boxes:
        x1, y1, x2, y2 = box.xyxy
        value = {
            "x": 100 * x1 / image.width,
            "y": 100 * y1 / image.height,
            "width": 100 * (x2 - x1) / image.width,
            "height": 100 * (y2 - y1) / image.height,
            "rotation": 0,
            "rectanglelabels": [box.label],
        }
        results.append(
            {
                "from_name": "label",
                "to_name": "image",
                "type": "rectanglelabels",
                "original_width": image.width,
                "original_height": image.height,
                "score": box.score,
                "value": value,
            }
        )
    score = max((box.score for box in image.boxes), default=0.0)
    prediction = {"model_version": "weaksam", "score": score, "result": results}
    return {"data": {"image": f"/data/local-files/?d={image.file_name}"}, "predictions": [prediction]}


_Writer = Callable[[Sequence[str], Sequence[LabeledImage], Path], Path]
_WRITERS: dict[LabelFormat, _Writer] = {
    "yolo": _write_yolo,
    "voc": _write_voc,
    "csv": _write_csv,
    "labelstudio": _write_labelstudio,
}
