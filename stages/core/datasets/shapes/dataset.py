"""The embedded `shapes` set: drawn on demand, never committed, the same bytes for the same seed.

Written in two layouts that share their images: VOC (`Annotations`, `ImageSets/Main`, `SegmentationObject`) and COCO
(`annotations/instances_<subset>.json`, masks as RLE). Scene i of a subset depends on (seed, subset, i) alone, so a
smaller set is the beginning of a larger one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.core.artifacts.files import disk_faults
from stages.core.datasets.shapes.scenes import CLASSES, DrawnObject, Scene, draw_scene
from stages.core.errors import OutputExistsError
from stages.core.ops.mask_boxes import mask_to_box
from stages.core.structures.rle import encode_mask

NAME = "shapes"
VERSION = 1
"""Raised whenever the pictures change, so that old copies are drawn again."""
SUBSETS = ("train", "val", "test")
DEFAULT_COUNTS: Mapping[str, int] = {"train": 600, "val": 100, "test": 200}
DEFAULT_SEED = 0
JPEG_QUALITY = 92
STAMP_FILE = "shapes.json"
DATASET_YAML = f"""\
# Drawn by weaksam (stages/core/datasets/shapes/dataset.py); deleting the folder is safe, it is drawn again.
format: voc
classes: [{", ".join(CLASSES)}]
subsets:
  train: train
  val: test
  test: test
"""

_PALETTE = np.array([[(259 * i) % 256, (97 * i) % 256, (159 * i) % 256] for i in range(256)], np.uint8)


def ensure_shapes(root: Path, counts: Mapping[str, int] = DEFAULT_COUNTS, seed: int = DEFAULT_SEED) -> Path:
    """Return `<root>/shapes`, drawing it first if it is absent or of another version, seed or size.

    Processes that call this at once may draw twice, but each draws into its own folder and the first rename wins.

    Raises:
        OutputExistsError: `<root>/shapes` exists and was not made by this module.
        EnvironmentFault: the folder cannot be written.
    """
    folder = root / NAME
    if not _is_current(folder, counts, seed):
        write_shapes(root, counts, seed)
    return folder


def write_shapes(root: Path, counts: Mapping[str, int] = DEFAULT_COUNTS, seed: int = DEFAULT_SEED) -> None:
    """Draw the whole set under `<root>/shapes`, replacing an older copy; about 45 ms an image on one core.

    Raises:
        OutputExistsError: `<root>/shapes` exists and was not made by this module.
        EnvironmentFault: the folder cannot be written.
    """
    folder = root / NAME
    _refuse_foreign(folder)
    with disk_faults(folder):
        root.mkdir(parents=True, exist_ok=True)
        drawing = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=root))
        try:
            _write_all(drawing, counts, seed)
            drawing.chmod(0o755)
            _install(drawing, folder, counts, seed)
        finally:
            shutil.rmtree(drawing, ignore_errors=True)


def _stamp(counts: Mapping[str, int], seed: int) -> dict[str, Any]:
    return {"name": NAME, "version": VERSION, "seed": seed, "counts": {s: counts.get(s, 0) for s in SUBSETS}}


def _read_stamp(folder: Path) -> Any:
    try:
        return json.loads((folder / STAMP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_current(folder: Path, counts: Mapping[str, int], seed: int) -> bool:
    return bool(_read_stamp(folder) == _stamp(counts, seed))


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    stamp = _read_stamp(folder)
    if not isinstance(stamp, dict) or stamp.get("name") != NAME:
        raise OutputExistsError(
            "this folder was not drawn by weaksam, and the embedded set needs its name",
            where=folder,
            hint="rename the folder, or choose another data folder with --data",
        )


def _install(drawing: Path, folder: Path, counts: Mapping[str, int], seed: int) -> None:
    """Rename the finished drawing into place; a copy another process put there meanwhile is as good."""
    for _ in range(5):
        try:
            drawing.rename(folder)
            return
        except OSError:
            if not folder.exists():
                raise
        if _is_current(folder, counts, seed):
            return
        outdated = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=folder.parent))
        try:
            folder.rename(outdated / NAME)
        except FileNotFoundError:
            continue  # another process has just moved it away
        finally:
            shutil.rmtree(outdated, ignore_errors=True)
    raise OutputExistsError("another process keeps replacing this folder", where=folder, hint="try again")


def _write_all(folder: Path, counts: Mapping[str, int], seed: int) -> None:
    for name in ("JPEGImages", "Annotations", "SegmentationObject", "ImageSets/Main", "annotations"):
        (folder / name).mkdir(parents=True)
    next_image, next_annotation = 1, 1
    for position, subset in enumerate(SUBSETS):
        count = counts.get(subset, 0)
        stems: list[str] = []
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            stem = f"{next_image + index:06d}"
            scene = draw_scene(np.random.default_rng([seed, position, index]))
            _write_scene(folder, stem, scene)
            height, width = scene.image.shape[:2]
            image_id = next_image + index
            images.append({"id": image_id, "file_name": f"{stem}.jpg", "width": width, "height": height})
            for thing in scene.objects:
                annotations.append(_coco_annotation(next_annotation, image_id, thing))
                next_annotation += 1
            stems.append(stem)
        next_image += count
        (folder / "ImageSets/Main" / f"{subset}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        _write_coco(folder / "annotations" / f"instances_{subset}.json", images, annotations)
    (folder / "dataset.yaml").write_text(DATASET_YAML)
    (folder / STAMP_FILE).write_text(json.dumps(_stamp(counts, seed), indent=2) + "\n")


def _write_scene(folder: Path, stem: str, scene: Scene) -> None:
    bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(jpeg.tobytes())
    (folder / "Annotations" / f"{stem}.xml").write_text(_voc_xml(stem, scene))
    instances = np.zeros(scene.image.shape[:2], np.uint8)
    for number, thing in enumerate(scene.objects, start=1):
        instances[thing.mask] = number
    _write_palette_png(folder / "SegmentationObject" / f"{stem}.png", instances)


def _write_palette_png(path: Path, indices: NDArray[np.uint8]) -> None:
    """Write instance numbers as a palette picture: 0 is the background, i the i-th object of the XML."""
    height, width = indices.shape
    picture = Image.frombytes("P", (width, height), indices.tobytes())
    picture.putpalette(_PALETTE.ravel().tolist())
    picture.save(path)


def _voc_xml(stem: str, scene: Scene) -> str:
    height, width, depth = scene.image.shape
    lines = [
        "<annotation>",
        "  <folder>shapes</folder>",
        f"  <filename>{stem}.jpg</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>{depth}</depth></size>",
        "  <segmented>1</segmented>",
    ]
    lines += _voc_objects(scene.objects)
    return "\n".join([*lines, "</annotation>"]) + "\n"


def _voc_objects(objects: Iterable[DrawnObject]) -> list[str]:
    lines: list[str] = []
    for thing in objects:
        x0, y0, x1, y1 = (int(side) for side in mask_to_box(thing.mask))
        # VOC counts pixels from 1 and includes the last one.
        corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        lines += [
            "  <object>",
            f"    <name>{escape(CLASSES[thing.label])}</name>",
            f"    <truncated>{int(thing.truncated)}</truncated>",
            f"    <occluded>{int(thing.occluded)}</occluded>",
            "    <difficult>0</difficult>",
            f"    <bndbox>{corners}</bndbox>",
            "  </object>",
        ]
    return lines


def _coco_annotation(annotation_id: int, image_id: int, thing: DrawnObject) -> dict[str, Any]:
    x0, y0, x1, y1 = (int(side) for side in mask_to_box(thing.mask))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": thing.label + 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(thing.mask.sum()),
        "segmentation": encode_mask(thing.mask),
        "iscrowd": 0,
    }


def _write_coco(path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    categories = [
        {"id": index + 1, "name": name, "supercategory": NAME} for index, name in enumerate(CLASSES)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")
