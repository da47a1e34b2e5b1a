"""Tiny data sets on disk for tests: VOC, COCO and folder layouts with made-up images and objects.

Objects are ``Obj(name, (x1, y1, x2, y2))`` in 0-based half-open pixels; the builders write them the way
each layout does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 48, 32


@dataclass(frozen=True)
class Obj:
    """An object to write: class name, half-open box, flags."""

    name: str
    box_xyxy: tuple[int, int, int, int] = (4, 6, 24, 26)
    difficult: bool = False
    crowd: bool = False


Scene = Sequence[Obj]
SCENES: Mapping[str, Mapping[str, Scene]] = {
    "train": {
        "img_1": [Obj("cat"), Obj("dog", (20, 8, 40, 30))],
        "img_2": [Obj("dog", (0, 0, 16, 16)), Obj("dog", (20, 4, 48, 32))],
        "img_3": [Obj("bird", (10, 10, 30, 20))],
    },
    "test": {"img_4": [Obj("cat", (2, 2, 30, 30))], "img_5": [Obj("bird", (8, 4, 20, 28))]},
}
CLASSES = ("bird", "cat", "dog")


def make_image(path: Path, seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """Write a seeded noise image in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_xml(path: Path, objects: Scene, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Write one VOC annotation (1-based inclusive boxes); ``size`` is what it claims, (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    items = "".join(
        f"<object><name>{escape(o.name)}</name><difficult>{int(o.difficult)}</difficult><bndbox>"
        f"<xmin>{o.box_xyxy[0] + 1}</xmin><ymin>{o.box_xyxy[1] + 1}</ymin>"
        f"<xmax>{o.box_xyxy[2]}</xmax><ymax>{o.box_xyxy[3]}</ymax></bndbox></object>"
        for o in objects
    )
    size_xml = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>{size_xml}{items}</annotation>", encoding="utf-8")
    return path


def make_voc(
    root: Path,
    name: str = "tiny",
    subsets: Mapping[str, Mapping[str, Scene]] = SCENES,
    *,
    masks: bool = False,
) -> Path:
    """Write ``<root>/<name>`` in VOC layout (PNG images called .jpg would also do; these are JPEGs).

    Args:
        root: Data folder.
        name: Data set name.
        subsets: Subset -> image id -> objects.
        masks: Write ``SegmentationObject`` and ``SegmentationClass`` with every box filled, later objects
            on top.

    Returns:
        The data set's folder.
    """
    folder = root / name
    classes = sorted({o.name for scenes in subsets.values() for objects in scenes.values() for o in objects})
    seed = 0
    for subset, scenes in subsets.items():
        make_id_list(folder, subset, scenes)
        for image_id, objects in scenes.items():
            make_image(folder / "JPEGImages" / f"{image_id}.jpg", seed)
            make_xml(folder / "Annotations" / f"{image_id}.xml", objects)
            if masks:
                _make_masks(folder, image_id, objects, classes)
            seed += 1
    return folder


def make_id_list(
    folder: Path, subset: str, ids: Sequence[str] | Mapping[str, Any], kind: str = "Main"
) -> Path:
    """Write ``ImageSets/<kind>/<subset>.txt``."""
    path = folder / "ImageSets" / kind / f"{subset}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image_id}\n" for image_id in ids), encoding="utf-8")
    return path


def _make_masks(folder: Path, image_id: str, objects: Scene, classes: Sequence[str]) -> None:
    instance = np.zeros((HEIGHT, WIDTH), np.uint8)
    semantic = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, item in enumerate(objects, start=1):
        x1, y1, x2, y2 = item.box_xyxy
        instance[y1:y2, x1:x2] = number
        semantic[y1:y2, x1:x2] = classes.index(item.name) + 1
    save_palette_png(folder / "SegmentationObject" / f"{image_id}.png", instance)
    save_palette_png(folder / "SegmentationClass" / f"{image_id}.png", semantic)


def save_palette_png(path: Path, indices_HW: NDArray[np.uint8]) -> Path:
    """Write a palette PNG of indices, as VOC's segmentation files are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(indices_HW).convert("L")
    image.putpalette([(37 * i) % 256 for i in range(768)])
    image.save(path)
    return path


def coco_document(
    scenes: Mapping[str, Scene], classes: Sequence[str] = CLASSES, category_ids: Sequence[int] | None = None
) -> dict[str, Any]:
    """A COCO data set: image ids 10, 20, ...; categories 3, 5, 7, ... unless given; box polygons as masks."""
    categories = category_ids or [3 + 2 * i for i in range(len(classes))]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for position, (image_id, objects) in enumerate(scenes.items(), start=1):
        images.append({"id": 10 * position, "file_name": f"{image_id}.jpg", "width": WIDTH, "height": HEIGHT})
        for item in objects:
            annotations.append(
                _coco_annotation(len(annotations) + 1, 10 * position, item, classes, categories)
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c, "name": n} for c, n in zip(categories, classes, strict=True)],
    }


def _coco_annotation(
    number: int, image_number: int, item: Obj, classes: Sequence[str], categories: Sequence[int]
) -> dict[str, Any]:
    x1, y1, x2, y2 = item.box_xyxy
    polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
    before, inside = x1 * HEIGHT + y1, y2 - y1
    gaps = [inside if i % 2 == 0 else HEIGHT - inside for i in range(2 * (x2 - x1) - 1)]
    counts = [before, *gaps, WIDTH * HEIGHT - before - sum(gaps)]
    return {
        "id": number,
        "image_id": image_number,
        "category_id": categories[classes.index(item.name)],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": int(item.crowd),
        # COCO writes crowds as uncompressed run lengths, column by column, and the rest as polygons.
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts} if item.crowd else [polygon],
    }


def make_coco(
    root: Path, name: str = "tiny", subsets: Mapping[str, Mapping[str, Scene]] = SCENES, **options: Any
) -> Path:
    """Write ``<root>/<name>`` in COCO layout, images in a folder per subset; options of ``coco_document``."""
    folder = root / name
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    seed = 0
    for subset, scenes in subsets.items():
        document = coco_document(scenes, **options)
        (folder / "annotations" / f"instances_{subset}.json").write_text(
            json.dumps(document), encoding="utf-8"
        )
        for image in document["images"]:
            make_image(folder / subset / image["file_name"], seed)
            seed += 1
    return folder


def make_folder(
    root: Path, name: str = "tiny", subsets: Mapping[str, Mapping[str, Scene]] = SCENES, *, yaml: bool = True
) -> Path:
    """Write ``<root>/<name>`` as images plus ``<subset>.csv`` of tags, with a ``dataset.yaml`` if asked."""
    folder = root / name
    seed = 0
    for subset, scenes in subsets.items():
        lines = ["file_name,tags"]
        for image_id, objects in scenes.items():
            make_image(folder / "images" / f"{image_id}.jpg", seed)
            lines.append(f"{image_id}.jpg,{';'.join(sorted({o.name for o in objects}))}")
            seed += 1
        (folder / f"{subset}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if yaml:
        entries = "".join(f"  {s}: {'train' if s.startswith('train') else 'test'}\n" for s in subsets)
        (folder / "dataset.yaml").write_text(f"format: folder\nsubsets:\n{entries}", encoding="utf-8")
    return folder
