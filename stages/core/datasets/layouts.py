"""What a data set on disk is: its layout, its subsets, where images and annotations of each may lie.

Found by looking (:mod:`stages.core.datasets.formats.scanning`); a ``dataset.yaml``
(:mod:`stages.core.datasets.declared`) has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.core.datasets.split import Role
from stages.core.datasets.subsets import role_of

Layout = Literal["voc", "coco", "folder", "class-folders", "yolo", "label-studio", "labelme"]

NEGATIVE_TAGS = frozenset(
    {"background", "negative", "negatives", "empty", "no_object", "no object", "_background_"}
)
"""Tags in lower case that state that an image shows none of the classes."""

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Subset:
    """One subset of a data set on disk.

    Attributes:
        index: List of ids (VOC), JSON (COCO) or CSV (folder); None = every image of the folder.
        image_folders: Where its images may be, most likely first.
        role: None when neither the name nor a ``dataset.yaml`` says it.
        train_subset: What ``dataset.yaml`` declares as its train subset.
        segmentation: Listed among VOC's segmentation sets.
        annotations: Folder of XML files where that is not the data set's (VOC layout only).
        ids: Text file of the image ids that belong to it, one per line; None = all that the index lists.
    """

    index: Path | None
    image_folders: tuple[Path, ...]
    role: Role | None
    train_subset: str | None = None
    segmentation: bool = False
    annotations: Path | None = None
    ids: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set on disk.

    Attributes:
        annotations: Folder of XML files (VOC layout only).
        classes: Declared class list; None = taken from the files.
        negatives: Tags, in lower case, that state that an image shows none of the classes.
        restrict_to: Classes to which the data set is restricted; None = all.
    """

    name: str
    root: Path
    layout: Layout
    subsets: Mapping[str, Subset]
    annotations: Path | None = None
    classes: tuple[str, ...] | None = None
    negatives: frozenset[str] = NEGATIVE_TAGS
    restrict_to: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Official:
    """Where a well-known set may lie below the data folder, and how its files are named."""

    folders: tuple[str, ...]
    layout: Layout
    year: str
    classes: tuple[str, ...] | None = None


def _voc_folders(name: str, year: str) -> tuple[str, ...]:
    return (name, f"VOC{year}", f"VOCdevkit/VOC{year}", f"{name}/VOC{year}", f"{name}/VOCdevkit/VOC{year}")


OFFICIAL: Mapping[str, Official] = {
    "voc07": Official(_voc_folders("voc07", "2007"), "voc", "2007", VOC_CLASSES),
    "voc12": Official(_voc_folders("voc12", "2012"), "voc", "2012", VOC_CLASSES),
    "coco14": Official(("coco14", "coco2014", "coco", "COCO", "mscoco"), "coco", "2014"),
    "coco17": Official(("coco17", "coco2017", "coco", "COCO", "mscoco"), "coco", "2017"),
}


def voc_image_folders(root: Path) -> tuple[Path, ...]:
    """Where the images of a VOC-layout set may be."""
    return tuple(root / name for name in ("JPEGImages", "images", "Images"))


def coco_image_folders(root: Path, subset: str) -> tuple[Path, ...]:
    """Where the images of a COCO subset may be; minival2014's, for one, are in ``val2014``."""
    year = re.search(r"\d+$", subset)
    names = [subset, *([f"val{year[0]}", f"train{year[0]}"] if year else [])]
    names = [*names, *(f"images/{name}" for name in names), "images", "data", "JPEGImages"]
    return (*(root / name for name in names), root)


def folder_image_folders(root: Path, subset: str) -> tuple[Path, ...]:
    """Where the images of a CSV may be."""
    words = [word for word in re.split(r"[_\W]+", subset) if word != subset and role_of(word)]
    first = (root / subset, root / "images" / subset, *(root / word for word in words))
    return (*first, root / "images", root / "JPEGImages", root)
