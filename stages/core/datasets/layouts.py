"""Where data sets lie on disk: VOC, COCO and folder layouts found by looking, official sets by their own names.

Nothing is configured here. ``<data>/<dataset>/ImageSets/Main/<subset>.txt`` makes a VOC-layout split,
``<data>/<dataset>/annotations/instances_<subset>.json`` a COCO-layout one, ``<data>/<dataset>/<subset>.csv``
a folder of images with tags. A ``dataset.yaml`` (:mod:`stages.core.datasets.declared`) has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stages.core.datasets.split import Role
from stages.core.datasets.subsets import role_of

Layout = Literal["voc", "coco", "folder"]

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
    """

    index: Path | None
    image_folders: tuple[Path, ...]
    role: Role | None
    train_subset: str | None = None
    segmentation: bool = False


@dataclass(frozen=True)
class Dataset:
    """A data set on disk.

    Attributes:
        annotations: Folder of XML files (VOC layout only).
        classes: Declared class list; None = taken from the files.
    """

    name: str
    root: Path
    layout: Layout
    subsets: Mapping[str, Subset]
    annotations: Path | None = None
    classes: tuple[str, ...] | None = None


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


def scan(name: str, root: Path, layout: Layout | None = None) -> Dataset | None:
    """Recognise the layout of a folder, VOC before COCO before CSV; None if it has none of them.

    Args:
        name: What to call the data set.
        root: Its folder.
        layout: Look for this one only.
    """
    for known, scanner in SCANNERS.items():
        if layout in (None, known) and (found := scanner(name, root)) is not None:
            return found
    return None


def scan_official(name: str, data_root: Path, layout: Layout | None = None) -> Dataset | None:
    """Find voc07, voc12, coco14 or coco17 in any of their usual places; None if absent or not such a name."""
    official = OFFICIAL.get(name)
    if official is None or layout not in (None, official.layout):
        return None
    for folder in official.folders:
        found = scan(name, data_root / folder, official.layout)
        if found is None:
            continue
        subsets = found.subsets
        if official.layout == "coco":
            # One folder may hold both years; "train2014" of coco14 is called "train".
            of_year = {
                s.removesuffix(official.year): v for s, v in subsets.items() if s.endswith(official.year)
            }
            if not of_year and folder != name:
                continue
            subsets = of_year or subsets
        return replace(found, subsets=subsets, classes=official.classes)
    return None


def voc_image_folders(root: Path) -> tuple[Path, ...]:
    """Where the images of a VOC-layout set may be."""
    return tuple(root / name for name in ("JPEGImages", "images", "Images"))


def coco_image_folders(root: Path, subset: str) -> tuple[Path, ...]:
    """Where the images of a COCO subset may be; minival2014's, for one, are in ``val2014``."""
    year = re.search(r"\d+$", subset)
    names = [subset, *([f"val{year[0]}", f"train{year[0]}"] if year else [])]
    names = [*names, *(f"images/{name}" for name in names), "images", "JPEGImages"]
    return (*(root / name for name in names), root)


def _scan_voc(name: str, root: Path) -> Dataset | None:
    main, segmentation = root / "ImageSets" / "Main", root / "ImageSets" / "Segmentation"
    subsets: dict[str, Subset] = {}
    for list_file in _id_lists(segmentation):
        subset = Subset(list_file, voc_image_folders(root), role_of(list_file.stem), segmentation=True)
        subsets[f"seg_{list_file.stem}"] = subset
        if list_file.stem in ("trainaug", "train_aug"):
            subsets["trainaug"] = subset
    for list_file in _id_lists(main):
        subsets[list_file.stem] = Subset(list_file, voc_image_folders(root), role_of(list_file.stem))
    if not subsets:
        return None
    return Dataset(name, root, "voc", subsets, annotations=root / "Annotations")


def _id_lists(folder: Path) -> list[Path]:
    """Lists of ids in a folder, without VOC's per-class lists (``dog_train.txt``, two columns)."""
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    stems = {file.stem for file in files}
    return [f for f in files if not (f.stem.rpartition("_")[2] in stems - {f.stem} and _two_columns(f))]


def _two_columns(list_file: Path) -> bool:
    with list_file.open(encoding="utf-8", errors="replace") as lines:
        return len(next(lines, "").split()) == 2


def _scan_coco(name: str, root: Path) -> Dataset | None:
    prefix = "instances_"
    folder = root / "annotations"
    files = sorted(folder.glob(f"{prefix}*.json")) if folder.is_dir() else []
    subsets = {}
    for file in files:
        subset = file.stem.removeprefix(prefix)
        subsets[subset] = Subset(file, coco_image_folders(root, subset), role_of(subset))
    return Dataset(name, root, "coco", subsets) if subsets else None


def folder_image_folders(root: Path, subset: str) -> tuple[Path, ...]:
    """Where the images of a CSV may be."""
    return (root / subset, root / "images" / subset, root / "images", root / "JPEGImages", root)


def _scan_folder(name: str, root: Path) -> Dataset | None:
    files = sorted(root.glob("*.csv")) if root.is_dir() else []
    subsets = {
        file.stem: Subset(file, folder_image_folders(root, file.stem), role_of(file.stem))
        for file in files
        if role_of(file.stem) is not None
    }
    return Dataset(name, root, "folder", subsets) if subsets else None


SCANNERS: dict[Layout, Callable[[str, Path], Dataset | None]] = {
    "voc": _scan_voc,
    "coco": _scan_coco,
    "folder": _scan_folder,
}
"""Layout -> what recognises it in a folder, in the order of trial."""
