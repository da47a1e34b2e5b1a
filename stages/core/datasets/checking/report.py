"""``weaksam data check``: what a folder is, what its tags can teach, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core.datasets.catalog import find_dataset, list_splits, open_split
from stages.core.datasets.checking.duplicates import Looks, equal_images, looks_of, near_images
from stages.core.datasets.checking.tags import TagStatistics, tag_statistics
from stages.core.datasets.image_files import images_below
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.errors import ImageError, WeakSamError

SHOWN = 3
"""Images that a line names."""

Place = tuple[str, str]
"""Split and image id."""


@dataclass
class SplitCheck:
    """One split.

    Attributes:
        name: Its name.
        role: ``train`` or ``test``; empty where it cannot be opened.
        images: Images that stages would see.
        fingerprint: sha256 of its images and tags, the same in whatever layout.
        tags: What its tags teach, of a train split.
        error: Why it cannot be opened.
        left_out: Image id -> why stages would leave it out.
        notes: How it was read.
        warnings: What should be looked at.
    """

    name: str
    role: str = ""
    images: int = 0
    fingerprint: str = ""
    tags: TagStatistics | None = None
    error: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)


@dataclass
class DatasetCheck:
    """A whole data set.

    Attributes:
        name: Name of the data set.
        root: Its folder.
        layout: What it is; empty where nothing is recognised.
        classes: Class names.
        splits: Its splits.
        error: Why there is none.
        warnings: What concerns several images or splits.
    """

    name: str
    root: Path
    layout: str = ""
    classes: tuple[str, ...] = ()
    splits: list[SplitCheck] = field(default_factory=list)
    error: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Why no stage could start, or a split could not be used; empty if all is well."""
        found = [self.error] if self.error else []
        found += [f"{split.name}: {split.error}" for split in self.splits if split.error]
        if not found and not any(split.role == "train" for split in self.splits):
            found.append("there is no train split: name a subset train*, or say its role in dataset.yaml")
        return found

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "root": str(self.root),
            "layout": self.layout,
            "classes": list(self.classes),
            "splits": [
                {
                    "name": split.name,
                    "role": split.role,
                    "images": split.images,
                    "fingerprint": split.fingerprint,
                    "shown": split.tags.shown if split.tags else {},
                    "alone": split.tags.alone if split.tags else {},
                    "negatives": split.tags.negatives if split.tags else 0,
                    "left_out": split.left_out,
                    "notes": list(split.notes),
                    "warnings": split.warnings,
                    "error": split.error,
                }
                for split in self.splits
            ],
            "warnings": self.warnings,
            "problems": self.problems,
        }


ProgressFn = Callable[[Iterable[Place], int, str], Iterator[Place]]


def _silent(places: Iterable[Place], total: int, label: str) -> Iterator[Place]:
    return iter(places)


def check_dataset(
    name: str,
    data_root: Path,
    *,
    read_images: bool = True,
    classes: Sequence[str] = (),
    progress: ProgressFn = _silent,
) -> DatasetCheck:
    """Check a data set without changing anything.

    Args:
        name: Its name: that of its folder, or of an official set.
        data_root: Folder of data sets.
        read_images: Read every image: finds damaged ones and duplicates, and takes its time.
        classes: Restrict it to these classes.
        progress: Shows how far reading the images is.
    """
    root = data_root / name
    try:
        dataset = find_dataset(name, data_root)
    except WeakSamError as error:
        return DatasetCheck(name, root, error=str(error))
    if dataset is None:
        return DatasetCheck(name, root, error=_not_recognised(root))
    check = DatasetCheck(name, dataset.root, dataset.layout)
    opened: list[tuple[SplitCheck, WeakSplit]] = []
    for subset, own in dataset.subsets.items():
        one = SplitCheck(f"{name}_{subset}")
        check.splits.append(one)
        if own.role is None:
            one.error = "its name does not say whether it is a train or a test split; see dataset.yaml"
            continue
        try:
            split = open_split(one.name, data_root, classes=classes)
        except WeakSamError as error:
            one.error = str(error)
            continue
        _describe(one, split)
        check.classes = split.classes
        opened.append((one, split))
    if read_images:
        _read_images(check, opened, progress)
    return check


def _describe(one: SplitCheck, split: WeakSplit) -> None:
    one.role, one.images, one.notes = split.role, len(split), split.notes
    one.fingerprint = split.content_fingerprint
    one.left_out = {problem.id: problem.reason for problem in split.problems}
    if split.has_tags:
        one.tags = tag_statistics(split)
        one.warnings += one.tags.warnings()


def _not_recognised(root: Path) -> str:
    """Say what is in a folder that is none of the known layouts."""
    if not root.is_dir():
        return f"{root}: there is no such folder"
    below = [name for name in list_splits(root) if not name.startswith("shapes_")]
    if below:
        return f"{root} is a folder of data sets, not one itself; its splits are {', '.join(below[:12])}"
    images = images_below(root)
    if not images:
        return f"{root} holds no image"
    return (
        f"{root} holds {len(images)} images ({images[0]}, ...) and no tags that are understood. Put them into a folder "
        "per class, or write train.csv with the columns file_name,tags; docs/your-own-data.md lists all layouts"
    )


def _read_images(
    check: DatasetCheck, opened: Sequence[tuple[SplitCheck, WeakSplit]], progress: ProgressFn
) -> None:
    """Read every image once; name those that cannot be read, and those that are there twice."""
    paths: dict[Place, Path] = {
        (split.name, i): split.image_path(i) for _, split in opened for i in split.ids
    }
    by_name = {one.name: one for one, _ in opened}
    looks: dict[Place, Looks] = {}
    seen: dict[Path, Looks | str] = {}
    for place in progress(paths, len(paths), "images"):
        path = paths[place]
        if path not in seen:
            seen[path] = _looks_or_reason(path)
        own = seen[path]
        if isinstance(own, str):
            by_name[place[0]].left_out[place[1]] = own
        else:
            looks[place] = own
    tags = {(split.name, i): split.tags(i) for _, split in opened if split.has_tags for i in split.ids}
    check.warnings += _duplicate_warnings(looks, paths, tags)


def _looks_or_reason(path: Path) -> Looks | str:
    try:
        return looks_of(path, load_image(path))
    except ImageError as error:
        return error.what


def _duplicate_warnings(
    looks: dict[Place, Looks], paths: dict[Place, Path], tags: dict[Place, tuple[int, ...]]
) -> list[str]:
    """Equal and near-equal images, those in two splits of other roles first: they make a test too easy."""
    # The same file in train and trainval is no duplicate.
    files: dict[Path, Place] = {}
    for place in looks:
        files.setdefault(paths[place], place)
    looks = {place: looks[place] for place in files.values()}
    equal = [(group[0], other) for group in equal_images(looks) for other in group[1:]]
    lines = []
    for kind, pairs in (("the same", equal), ("nearly the same", near_images(looks))):
        across = [(a, b) for a, b in pairs if a[0] != b[0]]
        within = [(a, b) for a, b in pairs if a[0] == b[0]]
        if across:
            lines.append(f"{len(across)} images of two splits are {kind}: {_pairs(across)}")
        if within:
            lines.append(f"{len(within)} images are {kind} as another of their split: {_pairs(within)}")
    other_tags = [(a, b) for a, b in equal if a in tags and b in tags and tags[a] != tags[b]]
    if other_tags:
        lines.append(f"{len(other_tags)} pairs of equal images have other tags: {_pairs(other_tags)}")
    return lines


def _pairs(pairs: Sequence[tuple[Place, Place]]) -> str:
    shown = [f"{a[1]} and {b[1]}" for a, b in pairs[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(pairs) > SHOWN else "")
