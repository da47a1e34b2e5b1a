"""YOLO's layout: a text file of numbers per image, and ``data.yaml`` with the names of the classes.

``images/train/1.jpg`` goes with ``labels/train/1.txt``, ``train/images/1.jpg`` with ``train/labels/1.txt``, and where
there is no folder ``labels`` with the text file beside it. The first number of a line is the class; boxes and polygons
are not looked at. An empty file states that the image shows none of the classes.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from stages.core.datasets.image_files import images_below
from stages.core.datasets.layouts import Dataset, Subset
from stages.core.datasets.split import Listing
from stages.core.datasets.subsets import role_of
from stages.core.datasets.tagged import TaggedFile, TaggedFolder, listing_of
from stages.core.errors import ConfigError, MissingInputError, SchemaError

_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml")
_SUBSETS = ("train", "val", "valid", "test")


def scan_yolo(name: str, root: Path) -> Dataset | None:
    """Recognise ``data.yaml`` with ``names``, or folders of images and labels with ``classes.txt``."""
    described = _described(root)
    if described is not None:
        document, path = described
        classes = _names(document["names"], path)
        subsets = {s: _subset(s, document[s], document, root) for s in _SUBSETS if document.get(s)}
        return Dataset(name, root, "yolo", subsets, classes=classes) if subsets else None
    for file in ("classes.txt", "obj.names"):
        if (root / file).is_file() and (root / "labels").is_dir():
            classes = _lines(root / file)
            folders = [f for f in sorted((root / "images").glob("*")) if f.is_dir() and role_of(f.name)]
            named = {f.name: Subset(None, (f,), role_of(f.name)) for f in folders}
            whole = {
                "train": Subset(None, (root / "images" if (root / "images").is_dir() else root,), "train")
            }
            return Dataset(name, root, "yolo", named or whole, classes=classes)
    return None


def is_yolo_description(document: Any) -> bool:
    """Whether a YAML document is that of a YOLO data set."""
    return isinstance(document, dict) and "names" in document and "format" not in document


def _described(root: Path) -> tuple[dict[str, Any], Path] | None:
    for file in _DESCRIPTIONS:
        path = root / file
        if not path.is_file():
            continue
        try:
            document = yaml.safe_load(path.read_bytes())
        except yaml.YAMLError as error:
            raise ConfigError(f"not valid YAML: {error}", where=path) from error
        if is_yolo_description(document):
            return document, path
    return None


def _names(value: Any, path: Path) -> tuple[str, ...]:
    """Class names in the order of their numbers, from a list or a mapping of numbers."""
    if isinstance(value, dict):
        if sorted(value) != list(range(len(value))):
            raise ConfigError(
                f"'names' has the numbers {sorted(value)[:8]}, expected 0 to {len(value) - 1}", where=path
            )
        value = [value[i] for i in range(len(value))]
    if not isinstance(value, list) or not value:
        raise ConfigError(
            "'names' is neither a list of classes nor a mapping of numbers to classes", where=path
        )
    return tuple(str(item) for item in value)


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())


def _subset(subset: str, value: Any, document: dict[str, Any], root: Path) -> Subset:
    """One subset; ``train: ../train/images`` is written relative to a folder that is not where the data are now."""
    text = str(value[0] if isinstance(value, list) and value else value)
    parts = [part for part in PurePosixPath(text.replace("\\", "/")).parts if part not in ("..", ".", "/")]
    base = PurePosixPath(str(document.get("path") or "")).parts
    tails = [Path(*parts[i:]) for i in range(len(parts))] or [Path()]
    inside = Path(*(part for part in base if part not in ("..", ".", "/")))
    options = [
        root / inside / Path(*parts),
        *(root / tail for tail in tails),
        root / subset / "images",
        root / subset,
    ]
    folder = next((option for option in options if option.exists()), root / Path(*parts))
    if folder.is_file():
        return Subset(folder, (root,), role_of(subset))
    return Subset(None, (folder,), role_of(subset))


def read_yolo(dataset: Dataset, subset: Subset, *, train: bool) -> Listing:
    """List a subset, with tags on a train split; see :func:`stages.core.datasets.tagged.listing_of`."""
    return listing_of(dataset, subset, tagged_by_numbers, train=train)


def tagged_by_numbers(dataset: Dataset, subset: Subset) -> TaggedFolder:
    """Read the class numbers of every image."""
    folder = subset.image_folders[0]
    if not folder.is_dir():
        raise MissingInputError(
            "this folder of images does not exist", where=folder, hint="correct the paths in data.yaml"
        )
    names = images_below(folder) if subset.index is None else _listed_images(subset.index, folder)
    classes = dataset.classes or ()
    return TaggedFolder(folder, tuple(_tagged(folder, name, classes) for name in names), classes)


def _listed_images(index: Path, folder: Path) -> list[str]:
    """Images of ``train.txt``: paths, relative to it or to somewhere else."""
    from stages.core.datasets.formats.file_names import resolve_names

    names = [line.removeprefix("./").removeprefix("data/") for line in _lines(index)]
    files, _ = resolve_names(names, folder)
    return sorted(set(files.values()))


def label_file(folder: Path, image: str) -> Path:
    """The text file of an image: in ``labels`` in place of the last ``images`` of the path, else beside the image."""
    path = folder / image
    parts = list(path.parts)
    positions = [i for i, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if positions:
        i = positions[-1]
        other = Path(*parts[:i], "labels", *parts[i + 1 :]).with_suffix(".txt")
        if other.is_file() or not path.with_suffix(".txt").is_file():
            return other
    return path.with_suffix(".txt")


def _tagged(folder: Path, image: str, classes: tuple[str, ...]) -> TaggedFile:
    path = label_file(folder, image)
    try:
        numbers = class_numbers(path, len(classes))
    except FileNotFoundError:
        return TaggedFile(image, None, untagged=f"label file {path.name} does not exist")
    return TaggedFile(image, tuple(dict.fromkeys(classes[n] for n in numbers)), negative=not numbers)


def class_numbers(path: Path, classes: int) -> list[int]:
    """The first number of every line.

    Raises:
        FileNotFoundError: no such file.
        SchemaError: not the number of a class.
    """
    numbers = []
    for line, text in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        if not text.strip():
            continue
        word = text.split()[0].removesuffix(".0")
        if not word.isdecimal() or int(word) >= classes:
            raise SchemaError(
                f"line {line} begins with '{word}', expected the number of a class, 0 to {classes - 1}",
                where=path,
                hint="is 'names' in data.yaml that of this data set?",
            )
        numbers.append(int(word))
    return numbers
