"""A folder per class: ``train/dog/1.jpg``, or without train and test ``dog/1.jpg``, as torchvision's ImageFolder.

The class is the first folder below the subset's; images may lie deeper. An image that is in several class folders, as a
link or as the same bytes under the same name, shows all of these classes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

from stages.core.datasets.image_files import images_below, images_in, visible_folders
from stages.core.datasets.layouts import Dataset, Subset
from stages.core.datasets.split import Listing, existing_folder
from stages.core.datasets.subsets import role_of
from stages.core.datasets.tagged import TaggedFile, TaggedFolder, listing_of, sort_tags

NOT_CLASSES = frozenset(
    ("images", "image", "img", "imgs", "photos", "photo", "pictures", "jpegimages", "labels", "annotations", "masks",
     "data", "valid", "validation")
)  # fmt: skip
"""Names of folders, in lower case, that hold images of all classes."""


def scan_class_folders(name: str, root: Path) -> Dataset | None:
    """Recognise folders of classes, below folders of subsets or not."""
    subsets: dict[str, Subset] = {}
    for folder in visible_folders(root):
        role = role_of(folder.name)
        if role is not None and _class_folders(folder):
            subsets[folder.name] = Subset(None, (folder,), role)
    if not subsets and _class_folders(root) and not images_in(root):
        subsets["train"] = Subset(None, (root,), "train")
    return Dataset(name, root, "class-folders", subsets) if subsets else None


def _class_folders(folder: Path) -> list[Path]:
    """Folders that are named like classes, if at least one of them holds images directly and none is a subset's."""
    folders = [f for f in visible_folders(folder) if f.name.lower() not in NOT_CLASSES]
    if any(role_of(f.name) is not None for f in folders) or not any(images_in(f) for f in folders):
        return []
    return folders


def read_class_folders(dataset: Dataset, subset: Subset, *, train: bool) -> Listing:
    """List a subset, with tags on a train split; see :func:`stages.core.datasets.tagged.listing_of`."""
    return listing_of(dataset, subset, tagged_by_folder, train=train)


def tagged_by_folder(dataset: Dataset, subset: Subset) -> TaggedFolder:
    """Read the classes of images off their folders."""
    root = existing_folder(subset.image_folders)
    by_name: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for folder in visible_folders(root):
        if folder.name.lower() not in NOT_CLASSES:
            for name in images_below(folder):
                by_name[name].append((folder.name, f"{folder.name}/{name}"))
    files: list[TaggedFile] = []
    for name, places in by_name.items():
        groups = _same_images(root, places)
        for group in groups:
            kind, path = group[0]
            tags, negative = sort_tags([kind for kind, _ in group], dataset.negatives)
            own = name if len(groups) == 1 else f"{kind}/{name}"
            files.append(TaggedFile(path, tags, negative, name=own))
    loose = images_in(root)
    files += [
        TaggedFile(name, (), untagged="it lies beside the folders of classes, in none of them")
        for name in loose
    ]
    several = sum(len(file.tags or ()) > 1 for file in files)
    notes = [f"{several} images are in the folders of several classes"] if several else []
    return TaggedFolder(root, tuple(files), notes=tuple(notes))


def _same_images(root: Path, places: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Group the places of one name by content; most names have one place, and are not opened."""
    if len(places) == 1:
        return [places]
    groups: dict[object, list[tuple[str, str]]] = defaultdict(list)
    sizes = {path: (root / path).stat().st_size for _, path in places}
    for kind, path in places:
        alone = sum(size == sizes[path] for size in sizes.values()) == 1
        key = path if alone else hashlib.sha256((root / path).read_bytes()).hexdigest()
        groups[key].append((kind, path))
    return list(groups.values())
