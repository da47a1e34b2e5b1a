"""What recognises the layout of a folder: the homes of tags that are known, in the order in which they are looked for.

Every scanner looks at names and at the beginnings of a few files, and returns the data set or None. A data set's only
subset trains, whatever it is called.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stages.core.datasets.formats.class_folders import scan_class_folders
from stages.core.datasets.formats.label_studio import scan_label_studio
from stages.core.datasets.formats.labelme import scan_labelme
from stages.core.datasets.formats.yolo import scan_yolo
from stages.core.datasets.image_files import images_in, visible_files, visible_folders
from stages.core.datasets.layouts import (
    OFFICIAL,
    Dataset,
    Layout,
    Subset,
    coco_image_folders,
    folder_image_folders,
    voc_image_folders,
)
from stages.core.datasets.subsets import role_of

_HEAD = 65_536


def scan(name: str, root: Path, layout: Layout | None = None) -> Dataset | None:
    """Recognise the layout of a folder; None if it has none that is known.

    Args:
        name: What to call the data set.
        root: Its folder.
        layout: Look for this one only.
    """
    if not root.is_dir():
        return None
    for known, scanner in SCANNERS:
        if layout in (None, known) and (found := scanner(name, root)) is not None:
            return _only_subset_trains(found)
    return None


def _only_subset_trains(dataset: Dataset) -> Dataset:
    if len(dataset.subsets) > 1 or any(subset.role for subset in dataset.subsets.values()):
        return dataset
    return replace(dataset, subsets={name: replace(s, role="train") for name, s in dataset.subsets.items()})


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
    files = visible_files(folder, ".txt")
    stems = {file.stem for file in files}
    return [f for f in files if not (f.stem.rpartition("_")[2] in stems - {f.stem} and _two_columns(f))]


def _two_columns(list_file: Path) -> bool:
    """Whether the first lines are each an id and -1, 0 or 1; ids may hold blanks, too."""
    with list_file.open(encoding="utf-8", errors="replace") as lines:
        words = [line.split() for line in itertools.islice(lines, 50) if line.strip()]
    return bool(words) and all(len(line) == 2 and line[1] in ("-1", "0", "1") for line in words)


def _scan_xml(name: str, root: Path) -> Dataset | None:
    """XML without lists of ids: beside the images (labelImg, Roboflow), or in a folder next to theirs."""
    subsets: dict[str, Subset] = {}
    for folder in visible_folders(root):
        if (role := role_of(folder.name)) is not None and (pair := _images_and_xml(folder)) is not None:
            subsets[folder.name] = Subset(None, (pair[0],), role, annotations=pair[1])
    if not subsets and (pair := _images_and_xml(root)) is not None:
        subsets["train"] = Subset(None, (pair[0],), "train", annotations=pair[1])
    return Dataset(name, root, "voc", subsets) if subsets else None


def _images_and_xml(folder: Path) -> tuple[Path, Path] | None:
    stems = {Path(image).stem for image in images_in(folder)}
    if any(file.stem in stems for file in visible_files(folder, ".xml")):
        return folder, folder
    images = next((f for f in voc_image_folders(folder) if images_in(f)), folder if stems else None)
    named = ("Annotations", "annotations", "xmls", "xml", "labels")
    xml = next((folder / n for n in named if visible_files(folder / n, ".xml")), None)
    return (images, xml) if images is not None and xml is not None else None


def _scan_coco(name: str, root: Path) -> Dataset | None:
    """``annotations/instances_<subset>.json``; or a COCO file in a subset's folder, in ``annotations``, at the top."""
    subsets: dict[str, Subset] = {}
    for file in visible_files(root / "annotations", ".json"):
        if file.stem.startswith("instances_"):
            subset = file.stem.removeprefix("instances_")
            subsets[subset] = Subset(file, coco_image_folders(root, subset), role_of(subset))
    if subsets:
        return Dataset(name, root, "coco", subsets)
    for folder in visible_folders(root):
        if (role := role_of(folder.name)) is not None:
            files = [file for file in visible_files(folder, ".json") if _is_coco(file)]
            if len(files) == 1:
                subsets[folder.name] = Subset(files[0], (folder, folder / "images", root), role)
    for place in (root / "annotations", root) if not subsets else ():
        files = [file for file in visible_files(place, ".json") if _is_coco(file)]
        for file in files:
            subset = file.stem if role_of(file.stem) or len(files) > 1 else "train"
            subsets[subset] = Subset(file, coco_image_folders(root, subset), role_of(subset))
    return Dataset(name, root, "coco", subsets) if subsets else None


def _is_coco(file: Path) -> bool:
    """Whether a JSON file is an object with two of COCO's sections at its beginning or end."""
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
        stream.seek(max(0, file.stat().st_size - _HEAD))
        ends = head + stream.read()
    sections = (b'"images"', b'"annotations"', b'"categories"')
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and sum(key in ends for key in sections) >= 2


_TABLES = (
    "metadata.csv",
    "metadata.jsonl",
    "_classes.csv",
    "_annotations.csv",
    "labels.csv",
    "annotations.csv",
    "tags.csv",
)
_COPIES = frozenset(
    ("backup", "bak", "copy", "kopie", "copie", "old", "orig", "original", "checkpoint", "tmp", "temp")
)
"""Words in names of files that are not what is meant."""


def _scan_tables(name: str, root: Path) -> Dataset | None:
    """``<subset>.csv``; a table in the folder of a subset (hub, Roboflow); or the only table there is."""
    files = [f for f in _tables(root) if not _COPIES & set(re.split(r"[^a-z]+", f.stem.lower()))]
    subsets = {
        file.stem: Subset(file, folder_image_folders(root, file.stem), role_of(file.stem))
        for file in files
        if role_of(file.stem) is not None
    }
    for folder in visible_folders(root) if not subsets else ():
        table = next((folder / t for t in _TABLES if (folder / t).is_file()), None)
        if table is not None and (role := role_of(folder.name)) is not None:
            subsets[folder.name] = Subset(table, (folder, folder / "images", root), role)
    if not subsets and (table := _only_table(files)) is not None:
        subsets["train"] = Subset(table, folder_image_folders(root, "train"), "train")
    return Dataset(name, root, "folder", subsets) if subsets else None


def _tables(root: Path) -> list[Path]:
    return [*visible_files(root, ".csv"), *visible_files(root, ".tsv"), *visible_files(root, ".jsonl")]


def _only_table(files: list[Path]) -> Path | None:
    named = [file for file in files if file.name in _TABLES]
    return (named or files)[0] if len(named or files) == 1 else None


SCANNERS: list[tuple[Layout, Callable[[str, Path], Dataset | None]]] = [
    ("voc", _scan_voc),
    ("coco", _scan_coco),
    ("yolo", scan_yolo),
    ("voc", _scan_xml),
    ("folder", _scan_tables),
    ("labelme", scan_labelme),
    ("label-studio", scan_label_studio),
    ("class-folders", scan_class_folders),
]
"""Layout and what recognises it in a folder, in the order of trial; a layout may have several homes."""
