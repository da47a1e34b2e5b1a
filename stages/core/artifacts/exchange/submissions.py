"""What evaluation servers want: VOC's text files per class, its label images, and COCO's zipped results.

The VOC server measures VOC2012 test, COCO's measures test-dev; neither publishes ground truth. VOC's coordinates are
1-based and inclusive.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.core.artifacts.coco_json import LabelSpace, write_results
from stages.core.artifacts.files import write_text
from stages.core.errors import SchemaError
from stages.core.structures.detections import Detections
from stages.core.structures.rle import decode_masks

COMPETITIONS = {"own": ("comp3", "comp5"), "any": ("comp4", "comp6")}
"""Training data -> VOC's numbers of detection and segmentation: its own alone, or any other (ImageNet) too."""


def write_voc_detections(
    folder: Path,
    split: LabelSpace,
    subset: str,
    detections: Mapping[str, Detections],
    trained_on: str = "any",
) -> list[Path]:
    """Write `Main/comp4_det_<subset>_<class>.txt`: image, score and box, 1-based and inclusive, a line each.

    Images are in the order of the split, boxes of an image best first. A class without a detection has an empty file.

    Returns:
        The files, one per class.
    """
    lines: dict[int, list[str]] = {index: [] for index in range(len(split.classes))}
    for image_id in split.ids:
        found = detections.get(image_id, Detections.empty()).best_first()
        for box, label, score in zip(found.boxes_xyxy, found.classes, found.scores, strict=True):
            x1, y1, x2, y2 = (float(value) for value in box)
            # The last pixel of a half-open box is x2 - 1, which is pixel x2 when counted from 1.
            lines[int(label)].append(f"{image_id} {score:.6f} {x1 + 1:.3f} {y1 + 1:.3f} {x2:.3f} {y2:.3f}\n")
    files = []
    for index, name in enumerate(split.classes):
        path = folder / "Main" / f"{COMPETITIONS[trained_on][0]}_det_{subset}_{name}.txt"
        write_text(path, "".join(lines[index]))
        files.append(path)
    return files


def write_voc_segmentations(
    folder: Path,
    split: LabelSpace,
    subset: str,
    segmentations: Mapping[str, Detections],
    sizes: Mapping[str, tuple[int, int]],
    trained_on: str = "any",
    score_thresh: float = 0.3,
) -> list[Path]:
    """Write `Segmentation/comp6_<subset>_cls/<image>.png`: a class of every pixel, 0 for background, in VOC's colours.

    Of masks that overlap the one of higher score is on top.

    Args:
        folder: Where to.
        split: Its classes have numbers from 1.
        subset: Name of the subset on the server.
        segmentations: Image id -> masks.
        sizes: Image id -> (height, width), pixels.
        trained_on: A key of `COMPETITIONS`.
        score_thresh: Masks below are left out.

    Raises:
        SchemaError: detections without masks, or a mask of another size than its image.
    """
    target = folder / "Segmentation" / f"{COMPETITIONS[trained_on][1]}_{subset}_cls"
    target.mkdir(parents=True, exist_ok=True)
    palette = voc_palette().flatten().tolist()
    files = []
    for image_id in split.ids:
        found = segmentations.get(image_id, Detections.empty()).reaching(score_thresh).best_first()
        labels_HW = np.zeros(sizes[image_id], np.uint8)
        if len(found):
            if found.masks is None:
                raise SchemaError(
                    f"image {image_id} has boxes without masks", hint="export segmentations.json of wsis"
                )
            try:
                masks_NHW = decode_masks(found.masks, *sizes[image_id])
            except ValueError as error:
                raise SchemaError(f"image {image_id}: {error}") from error
            for mask_HW, label in zip(masks_NHW[::-1], found.classes[::-1], strict=True):
                labels_HW[mask_HW > 0] = label + 1
        image = Image.fromarray(labels_HW, mode="P")
        image.putpalette(palette)
        files.append(target / f"{image_id}.png")
        image.save(files[-1])
    return files


def voc_palette() -> NDArray[np.uint8]:
    """VOC's colours (256, 3): the bits of a label, three at a time, are the highest bits of red, green and blue."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def write_coco_zip(
    folder: Path, split: LabelSpace, subset: str, found: Mapping[str, Detections], name: str
) -> Path:
    """Write `detections_<subset>_<name>_results.zip` with the JSON of that name inside, for boxes as for masks."""
    path = folder / f"detections_{subset}_{name}_results.json"
    write_results(path, split, found)
    archive = path.with_suffix(".zip")
    entry = zipfile.ZipInfo(path.name)  # no time of day: the same results give the same bytes
    entry.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(entry, path.read_bytes())
    path.unlink()
    return archive
