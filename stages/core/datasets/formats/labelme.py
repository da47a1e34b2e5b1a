"""labelme's layout: a JSON file beside every image, whose shapes have labels.

A file without shapes states that the image shows none of the classes; an image without a file is not tagged.
"""

from __future__ import annotations

import json
from pathlib import Path

from stages.core.datasets.image_files import images_below, images_in, visible_files, visible_folders
from stages.core.datasets.layouts import Dataset, Subset
from stages.core.datasets.split import Listing, existing_folder
from stages.core.datasets.subsets import role_of
from stages.core.datasets.tagged import TaggedFile, TaggedFolder, listing_of, sort_tags
from stages.core.errors import SchemaError

_HEAD = 65_536


def scan_labelme(name: str, root: Path) -> Dataset | None:
    """Recognise JSON files of labelme beside images."""
    folders = [f for f in visible_folders(root) if role_of(f.name) is not None and _is_labelme(f)]
    subsets = {f.name: Subset(None, (f,), role_of(f.name)) for f in folders}
    if not subsets and _is_labelme(root):
        subsets = {"train": Subset(None, (root,), "train")}
    return Dataset(name, root, "labelme", subsets) if subsets else None


def _is_labelme(folder: Path) -> bool:
    images = {Path(image).stem for image in images_in(folder)}
    beside = next((f for f in visible_files(folder, ".json") if f.stem in images), None)
    if beside is None:
        return False
    with beside.open("rb") as stream:
        return b'"shapes"' in stream.read(_HEAD)


def read_labelme(dataset: Dataset, subset: Subset, *, train: bool) -> Listing:
    """List a subset, with tags on a train split; see :func:`stages.core.datasets.tagged.listing_of`."""
    return listing_of(dataset, subset, tagged_by_shapes, train=train)


def tagged_by_shapes(dataset: Dataset, subset: Subset) -> TaggedFolder:
    """Read the labels of every image's shapes."""
    folder = existing_folder(subset.image_folders)
    return TaggedFolder(folder, tuple(_tagged(folder, name, dataset) for name in images_below(folder)))


def _tagged(folder: Path, image: str, dataset: Dataset) -> TaggedFile:
    path = (folder / image).with_suffix(".json")
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return TaggedFile(image, None, untagged=f"annotation file {path.name} does not exist")
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"not valid JSON ({error})", where=path, hint="save it again in labelme") from error
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list) or not all(
        isinstance(s, dict) and isinstance(s.get("label"), str) for s in shapes
    ):
        raise SchemaError("expected labelme's list of 'shapes', each with a 'label'", where=path)
    tags, negative = sort_tags([shape["label"] for shape in shapes], dataset.negatives)
    return TaggedFile(image, tuple(dict.fromkeys(tags)), negative or not shapes)
