"""The embedded set: deterministic bytes, layouts that agree, safe replacement."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from defusedxml.ElementTree import parse
from PIL import Image
from pycocotools import mask as coco_mask

from stages.core.datasets.shapes.dataset import ensure_shapes, write_shapes
from stages.core.datasets.shapes.figures import CLASS_FIGURES, DISTRACTORS
from stages.core.datasets.shapes.scenes import CLASSES, MIN_AREA, draw_scene
from stages.core.errors import OutputExistsError

COUNTS = {"train": 4, "val": 2, "test": 2}


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_shapes(tmp_path_factory.mktemp("data"), COUNTS, seed=3)


def test_write_shapes__same_seed_gives_same_bytes(drawn: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path, COUNTS, seed=3)
    assert digest(tmp_path / "shapes") == digest(drawn)


def test_write_shapes__other_seed_gives_other_pictures(drawn: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path, {"train": 1}, seed=4)
    name = "JPEGImages/000001.jpg"
    assert (tmp_path / "shapes" / name).read_bytes() != (drawn / name).read_bytes()


def test_write_shapes__smaller_set_is_the_beginning_of_a_larger(drawn: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path, {"train": 2}, seed=3)
    for stem in ("000001", "000002"):
        name = f"JPEGImages/{stem}.jpg"
        assert (tmp_path / "shapes" / name).read_bytes() == (drawn / name).read_bytes()


def test_layouts__voc_boxes_are_coco_boxes_are_bounds_of_masks(drawn: Path) -> None:
    stems: list[str] = []
    for subset, count in COUNTS.items():
        coco: dict[str, Any] = json.loads((drawn / f"annotations/instances_{subset}.json").read_text())
        listed = (drawn / f"ImageSets/Main/{subset}.txt").read_text().split()
        assert [image["file_name"] for image in coco["images"]] == [f"{stem}.jpg" for stem in listed]
        assert len(listed) == count
        assert [category["name"] for category in coco["categories"]] == list(CLASSES)
        stems += listed
        for image, stem in zip(coco["images"], listed, strict=True):
            own = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
            check_image(drawn, stem, image, own)
    assert len(set(stems)) == sum(COUNTS.values())


def check_image(folder: Path, stem: str, image: dict[str, Any], annotations: list[dict[str, Any]]) -> None:
    pixels = cv2.imread(str(folder / "JPEGImages" / f"{stem}.jpg"))
    assert pixels is not None
    assert pixels.shape == (image["height"], image["width"], 3)
    root = parse(folder / "Annotations" / f"{stem}.xml").getroot()
    assert root is not None
    things = root.findall("object")
    instances = np.asarray(Image.open(folder / "SegmentationObject" / f"{stem}.png"))
    assert len(things) == len(annotations) == int(instances.max())
    for number, (thing, annotation) in enumerate(zip(things, annotations, strict=True), start=1):
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        np.testing.assert_array_equal(mask, instances == number)
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        corner = [int(thing.findtext(f"bndbox/{name}", "-1")) for name in ("xmin", "ymin", "xmax", "ymax")]
        assert corner == [x + 1, y + 1, x + width, y + height]
        assert thing.findtext("name") == CLASSES[annotation["category_id"] - 1]
        assert annotation["area"] == int(mask.sum())


def test_ensure_shapes__keeps_a_current_copy_and_replaces_another(tmp_path: Path) -> None:
    folder = ensure_shapes(tmp_path, {"train": 1}, seed=0)
    picture = folder / "JPEGImages" / "000001.jpg"
    before = picture.stat().st_mtime_ns
    ensure_shapes(tmp_path, {"train": 1}, seed=0)
    assert picture.stat().st_mtime_ns == before
    ensure_shapes(tmp_path, {"train": 2}, seed=0)
    assert (folder / "JPEGImages" / "000002.jpg").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_ensure_shapes__concurrent_calls_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: ensure_shapes(tmp_path, {"train": 1}, seed=0), range(4)))
    assert len(set(folders)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert (folders[0] / "annotations/instances_test.json").is_file()


def test_ensure_shapes__foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "mine.txt").write_text("keep")
    with pytest.raises(OutputExistsError, match="not drawn by weaksam"):
        ensure_shapes(tmp_path, {"train": 1})
    assert (tmp_path / "shapes" / "mine.txt").read_text() == "keep"


def test_draw_scene__objects_are_visible_disjoint_and_varied() -> None:
    scenes = [draw_scene(np.random.default_rng([1, i])) for i in range(24)]
    sizes: list[float] = []
    for scene in scenes:
        assert 1 <= len(scene.objects) <= 6
        assert 1 <= len({thing.label for thing in scene.objects}) <= 3
        assert max(scene.image.shape) <= 256
        stacked = np.stack([thing.mask for thing in scene.objects]).sum(axis=0)
        assert stacked.max() == 1
        areas = [int(thing.mask.sum()) for thing in scene.objects]
        assert min(areas) >= MIN_AREA
        sizes += [float(area) ** 0.5 for area in areas]
    assert max(sizes) > 2.5 * min(sizes)
    repeated = [max(Counter(thing.label for thing in scene.objects).values()) > 1 for scene in scenes]
    assert sum(repeated) >= len(scenes) // 3


def test_figures__every_class_has_a_mark_and_no_distractor_has() -> None:
    assert len(CLASS_FIGURES) >= 8
    assert all(figure.mark for figure in CLASS_FIGURES.values())
    assert not any(figure.mark for figure in DISTRACTORS)
