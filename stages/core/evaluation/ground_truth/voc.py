"""True boxes and masks of VOC-layout data sets. The single home of VOC's 1-based inclusive coordinates.

An XML box ``xmin ymin xmax ymax`` counts pixels from 1 and includes its last ones; here it becomes
``xmin - 1, ymin - 1, xmax, ymax``: 0-based, half-open. Masks are those of ``SegmentationObject`` (value =
instance number, 0 background, 255 void). Splits of ``ImageSets/Main`` are about boxes: objects are those
of the XML, and get the instance they overlap most. Splits of ``ImageSets/Segmentation`` are about masks:
objects are the instances, classes those of ``SegmentationClass``, boxes drawn tightly round the masks.
"""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stages.core.datasets.catalog import SplitSource
from stages.core.datasets.safe_xml import parse_xml
from stages.core.datasets.split import WeakSplit
from stages.core.datasets.voc import (
    annotation_file,
    annotation_folder,
    is_difficult,
    object_elements,
    unknown_class,
)
from stages.core.errors import ImageError, SchemaError
from stages.core.evaluation.ground_truth.types import RLE, ImageGroundTruth
from stages.core.ops.mask_boxes import mask_to_box
from stages.core.structures.rle import encode_mask, rle_area

VOID = 255
Boxes = NDArray[np.float64]
Indices = NDArray[np.uint8]


class VocGroundTruthReader:
    """Reads images of one VOC-layout data set."""

    def __init__(self, source: SplitSource, split: WeakSplit) -> None:
        self._xml_folder = annotation_folder(source.dataset, source.subset)
        self._split = split
        self._restricted = source.restricted
        self._root = source.dataset.root
        self._class_index = {name: i for i, name in enumerate(split.classes)}
        self._from_masks = source.subset.segmentation

    def read(self, image_id: str, height: int, width: int) -> ImageGroundTruth:
        """True objects of an image of this size in pixels.

        Raises:
            FileNotFoundError: its XML does not exist.
            SchemaError: malformed XML or an unknown class. An impossible box, and a PNG that is damaged or of another
                size, are among the flaws.
            ImageError: such a PNG in a split that is about masks.
        """
        image = self._split.file_name(image_id)
        stem = Path(image).with_suffix("").as_posix()
        flaws: list[SchemaError] = []
        boxes, classes, difficult = self._read_xml(annotation_file(self._xml_folder, image), flaws)
        left_out = len(flaws)
        instances = kinds = None
        try:
            instances = self._read_png("SegmentationObject", stem, height, width)
            kinds = None if instances is None else self._read_png("SegmentationClass", stem, height, width)
        except SchemaError as error:
            if self._from_masks:
                raise ImageError(error.what, where=error.where) from error
            flaws.append(error)
            instances = None
        masks: list[RLE] | None = None if len(classes) else []
        if instances is not None:
            parts = _Instances(instances, kinds, classes)
            if self._from_masks:
                boxes, classes, difficult = parts.boxes, parts.classes, np.zeros(len(parts.classes), np.bool_)
                masks = [encode_mask(instances == number) for number in parts.numbers]
            else:
                owner = parts.assign(boxes, classes)
                numbers = [parts.numbers[i] for i in owner if i is not None]
                if len(numbers) == len(classes):
                    masks = [encode_mask(instances == number) for number in numbers]
        areas = [rle_area(m) for m in masks] if masks is not None else _box_areas(boxes)
        return ImageGroundTruth(
            width=width,
            height=height,
            boxes_xyxy=boxes,
            classes=classes,
            difficult=difficult,
            crowd=np.zeros(len(classes), np.bool_),
            masks=masks,
            areas=np.array(areas, dtype=np.float64),
            flaws=tuple(flaws),
            left_out=left_out,
        )

    def _read_xml(
        self, path: Path, flaws: list[SchemaError]
    ) -> tuple[Boxes, NDArray[np.int64], NDArray[np.bool_]]:
        boxes, classes, difficult = [], [], []
        for number, item in enumerate(object_elements(parse_xml(path, "annotation")), start=1):
            name = unicodedata.normalize("NFC", item.findtext("name") or "").strip()
            if name not in self._class_index:
                if self._restricted:
                    continue
                raise unknown_class(name, self._class_index, path)
            try:
                boxes.append(_box(item, number, path))
            except SchemaError as error:
                flaws.append(error)
                continue
            classes.append(self._class_index[name])
            difficult.append(is_difficult(item.findtext("difficult"), number, path))
        return (
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            np.array(classes, dtype=np.int64),
            np.array(difficult, dtype=np.bool_),
        )

    def _read_png(self, folder: str, stem: str, height: int, width: int) -> Indices | None:
        path = self._root / folder / f"{stem}.png"
        if not path.is_file():
            return None
        try:
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode not in ("P", "L"):
                    raise SchemaError(
                        f"expected palette indices, found a PNG of mode {image.mode}", where=path
                    )
                indices = np.array(image, dtype=np.uint8)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise SchemaError(f"cannot be read as a PNG of indices ({error})", where=path) from error
        if indices.shape != (height, width):
            raise SchemaError(
                f"is {indices.shape[1]} x {indices.shape[0]} pixels, but its image is {width} x {height}",
                where=path,
            )
        return indices


class _Instances:
    """The instances of one ``SegmentationObject`` map.

    Attributes:
        numbers: Their values in the map, ascending.
        boxes: float64 (m, 4), tight round each.
        classes: int64 (m,): what ``SegmentationClass`` holds under most of the instance; without that map,
            the class of the XML object of the same number.
    """

    def __init__(self, instances: Indices, kinds: Indices | None, xml_classes: NDArray[np.int64]) -> None:
        numbers, self.boxes, classes = [], np.zeros((0, 4)), []
        for number in np.unique(instances):
            if number in (0, VOID):
                continue
            inside = instances == number
            known = kinds[inside & (kinds > 0) & (kinds < VOID)] if kinds is not None else None
            if known is not None and len(known):
                classes.append(int(np.bincount(known).argmax()) - 1)
            elif kinds is None and number <= len(xml_classes):
                classes.append(int(xml_classes[number - 1]))
            else:
                continue  # an instance of no class has nothing to be compared with
            numbers.append(int(number))
            self.boxes = np.vstack([self.boxes, mask_to_box(inside).astype(np.float64)])
        self.numbers = numbers
        self.classes = np.array(classes, dtype=np.int64)

    def assign(self, boxes: Boxes, classes: NDArray[np.int64]) -> list[int | None]:
        """The instance of each XML object: pairs of one class by descending IoU, each used once.

        Equal overlaps go to the pair whose numbers agree, since VOC numbers instances in XML order.
        """
        pairs = []
        for i, (box, kind) in enumerate(zip(boxes, classes, strict=True)):
            for j, (other, other_kind) in enumerate(zip(self.boxes, self.classes, strict=True)):
                overlap = _iou(box, other) if kind == other_kind else 0.0
                if overlap > 0:
                    pairs.append((-overlap, abs(self.numbers[j] - 1 - i), i, j))
        owner: list[int | None] = [None] * len(boxes)
        for _, _, i, j in sorted(pairs):
            if owner[i] is None and j not in owner:
                owner[i] = j
        return owner


def _box(item: Element, number: int, path: Path) -> tuple[float, float, float, float]:
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = item.findtext(f"bndbox/{key}")
        try:
            value = float(text or "")
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SchemaError(f"object {number} has {key} = {text!r}, expected a number", where=path)
        corners.append(value)
    x1, y1, x2, y2 = corners[0] - 1, corners[1] - 1, corners[2], corners[3]
    if x2 <= x1 or y2 <= y1:
        raise SchemaError(
            f"object {number} has an empty box: xmin ymin xmax ymax = {' '.join(f'{c:g}' for c in corners)}",
            where=path,
            hint="correct or remove the object",
        )
    return x1, y1, x2, y2


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))


def _box_areas(boxes: Boxes) -> list[float]:
    return [float((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in boxes]
