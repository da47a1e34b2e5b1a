"""Label Studio's exports, JSON and JSON-MIN: choices, or the labels of regions, as tags.

A task without an annotation, or with a skipped one alone, is not tagged; one whose annotation is empty likewise, since
that is also what is saved by mistake. A choice such as "background" states that the image shows none of the classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.core.datasets.formats.file_names import image_folder, resolve_names
from stages.core.datasets.image_files import visible_files
from stages.core.datasets.layouts import Dataset, Subset
from stages.core.datasets.split import Listing
from stages.core.datasets.subsets import role_of
from stages.core.datasets.tagged import TaggedFile, TaggedFolder, listing_of, sort_tags
from stages.core.errors import SchemaError

_IMAGE_KEYS = ("image", "img", "image_url", "url", "file", "photo", "picture")
_HEAD = 4096


def scan_label_studio(name: str, root: Path) -> Dataset | None:
    """Recognise a list of tasks in a JSON file."""
    files = [file for file in visible_files(root, ".json") if _is_export(file)]
    folders = (root / "images", root)
    named = {f.stem if role_of(f.stem) or len(files) > 1 else "train": f for f in files}
    subsets = {subset: Subset(file, folders, role_of(subset)) for subset, file in named.items()}
    return Dataset(name, root, "label-studio", subsets) if subsets else None


def _is_export(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(_HEAD).lstrip()
    return head.startswith(b"[") and any(f'"{key}"'.encode() in head for key in _IMAGE_KEYS)


def read_label_studio(dataset: Dataset, subset: Subset, *, train: bool) -> Listing:
    """List a subset, with tags on a train split; see :func:`stages.core.datasets.tagged.listing_of`."""
    return listing_of(dataset, subset, tagged_by_tasks, train=train)


def tagged_by_tasks(dataset: Dataset, subset: Subset) -> TaggedFolder:
    """Read the tasks of a file."""
    assert subset.index is not None
    try:
        tasks = json.loads(subset.index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"not valid JSON ({error})", where=subset.index, hint="export it again") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise SchemaError(
            "expected a list of tasks", where=subset.index, hint="export it as JSON or JSON-MIN"
        )
    names = [_image_of(task, number, subset.index) for number, task in enumerate(tasks, start=1)]
    folder = image_folder(subset.image_folders, names)
    try:
        files, notes = resolve_names(names, folder)
    except SchemaError as error:
        raise SchemaError(error.what, where=subset.index, hint=error.hint) from error
    tagged = []
    for name, task in zip(names, tasks, strict=True):
        tags, negative = sort_tags(_words(task), dataset.negatives)
        tagged.append(
            TaggedFile(files[name], tuple(dict.fromkeys(tags)), negative, untagged="its task has no label")
        )
    return TaggedFolder(folder, tuple(tagged), notes=tuple(notes), where=subset.index)


def _image_of(task: Mapping[str, Any], number: int, where: Path) -> str:
    inside = task.get("data")
    data: Mapping[str, Any] = inside if isinstance(inside, dict) else task
    for key in _IMAGE_KEYS:
        if isinstance(data.get(key), str) and data[key]:
            return str(data[key])
    raise SchemaError(
        f"task {number} names no image", where=where, hint=f"expected one of {', '.join(_IMAGE_KEYS)}"
    )


def _words(task: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(task.get("data"), dict):
        for annotation in task.get("annotations") or ():
            if isinstance(annotation, dict) and not annotation.get("was_cancelled"):
                for region in annotation.get("result") or ():
                    yield from _labels(region.get("value") if isinstance(region, dict) else None)
        return
    for key in ("choice", "choices", "label", "labels", "tag", "tags"):  # JSON-MIN: one key per control
        yield from _labels(task.get(key))


def _labels(value: Any) -> Iterator[str]:
    """The words of a value: text, a list, or an object with a list of choices or labels."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _labels(item)
    elif isinstance(value, dict):
        for key, inside in value.items():
            if key == "choices" or key.endswith("labels"):
                yield from _labels(inside)
