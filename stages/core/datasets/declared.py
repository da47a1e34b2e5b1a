"""A user's own data set, said in one small file: ``<data>/<name>/dataset.yaml``.

```yaml
format: folder              # voc | coco | folder | class-folders | yolo | label-studio | labelme
classes: [apple, banana]    # optional: without it the files say
restrict_to: [apple]        # optional: only these of the classes; what else an image shows is unknown
negatives: [nothing]        # optional: tags that state that an image shows none of the classes
images: photos              # optional folder of images
subsets:
  train: train              # a role is enough when the files have their usual names
  holdout: {role: test, file: lists/holdout.csv, images: more_photos, train_split: train}
```

``file`` is the list of ids (voc), the JSON (coco, label-studio) or the table of tags (folder); a test subset of format
``folder`` without one is every image of its folder, as is a subset of the formats that need no file. ``ids`` lists the
ids of the images that belong to a subset of what its file or folder holds. Paths are relative to the folder of
``dataset.yaml``. YOLO's own file may have this name, too: without ``format`` and with ``names`` it is read as such.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.datasets.formats.yolo import is_yolo_description
from stages.core.datasets.layouts import (
    NEGATIVE_TAGS,
    Dataset,
    Layout,
    Subset,
    coco_image_folders,
    folder_image_folders,
    voc_image_folders,
)
from stages.core.datasets.split import Role
from stages.core.datasets.subsets import role_of
from stages.core.errors import ConfigError, did_you_mean
from stages.core.text_files import parse_yaml, read_text

FILE_NAME = "dataset.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DeclaredSubset(_Strict):
    """One entry of ``subsets``."""

    role: Literal["train", "test"] | None = Field(
        None, description="train = fit and apply, test = apply only"
    )
    file: str | None = Field(None, description="list of ids (voc), JSON (coco) or CSV (folder)")
    images: str | None = Field(None, description="folder of images, before the data set's own")
    annotations: str | None = Field(None, description="folder of XML files (voc), before the data set's own")
    ids: str | None = Field(None, description="text file of the ids of its images, one per line")
    train_split: str | None = Field(None, description="name of the train subset this test subset goes with")


class DeclaredDataset(_Strict):
    """The whole of ``dataset.yaml``."""

    format: Layout = Field(description="how annotations are written")
    classes: list[str] | None = Field(None, description="class names in index order", min_length=1)
    restrict_to: list[str] | None = Field(None, description="only these of the classes", min_length=1)
    negatives: list[str] | None = Field(None, description="tags that mean: none of the classes")
    images: str | None = Field(None, description="folder of images")
    annotations: str | None = Field(None, description="folder of XML files (voc); default Annotations")
    subsets: dict[str, Literal["train", "test"] | DeclaredSubset] = Field(description="by name", min_length=1)


def read_declared(name: str, root: Path, layout: Layout | None = None) -> Dataset | None:
    """Read ``<root>/dataset.yaml``; None if there is none, or if it declares another layout than asked for.

    Raises:
        ConfigError: not YAML, unknown or missing keys, values of a wrong type, repeated classes,
            or a ``train_split`` that is not a train subset.
    """
    path = root / FILE_NAME
    if not path.is_file():
        return None
    declared = _parse(path)
    if declared is None:
        return None
    if layout not in (None, declared.format):
        return None
    classes = None if declared.classes is None else tuple(declared.classes)
    if classes is not None and len(set(classes)) < len(classes):
        twice = next(c for i, c in enumerate(classes) if c in classes[:i])
        raise ConfigError(f"class '{twice}' is listed twice", where=path)
    subsets = {key: _subset(key, value, declared, root) for key, value in declared.subsets.items()}
    for key, subset in subsets.items():
        target = subset.train_subset
        if target is not None and (target not in subsets or subsets[target].role != "train"):
            trains = [k for k, s in subsets.items() if s.role == "train"]
            raise ConfigError(
                f"'{key}' goes with train_split '{target}', which is not a train subset here",
                where=path,
                hint=did_you_mean(target, trains),
            )
    annotations = root / (declared.annotations or "Annotations") if declared.format == "voc" else None
    return Dataset(
        name,
        root,
        declared.format,
        subsets,
        annotations=annotations,
        classes=classes,
        negatives=NEGATIVE_TAGS.union(tag.lower() for tag in declared.negatives or ()),
        restrict_to=None if declared.restrict_to is None else tuple(declared.restrict_to),
    )


def _parse(path: Path) -> DeclaredDataset | None:
    """Read the file; None if it is that of a YOLO data set."""
    loaded = parse_yaml(read_text(path, kind=ConfigError), path, kind=ConfigError)
    if is_yolo_description(loaded):
        return None
    if not isinstance(loaded, dict):
        raise ConfigError("expected a mapping with format and subsets", where=path)
    try:
        return DeclaredDataset.model_validate(loaded)
    except ValidationError as error:
        raise ConfigError(_explain(error), where=path, hint=_hint(error)) from error


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        # A union reports each of its branches; the branch names mean nothing to a user.
        parts = [
            str(p) for p in problem["loc"] if p != "DeclaredSubset" and not str(p).startswith("literal[")
        ]
        message = f"'{'.'.join(parts)}': {problem['msg']}, got {problem.get('input')!r}"
        if problem["type"] == "extra_forbidden":
            message = f"unknown key '{'.'.join(parts)}'"
        if message not in lines:
            lines.append(message)
    return "; ".join(lines)


def _hint(error: ValidationError) -> str | None:
    for problem in error.errors():
        if problem["type"] == "extra_forbidden":
            inside = DeclaredSubset if "subsets" in problem["loc"] else DeclaredDataset
            return did_you_mean(str(problem["loc"][-1]), inside.model_fields)
    return None


def _subset(name: str, value: Role | DeclaredSubset, declared: DeclaredDataset, root: Path) -> Subset:
    entry = value if isinstance(value, DeclaredSubset) else DeclaredSubset.model_validate({"role": value})
    usual_file, usual_images = _usual(name, declared.format, root)
    role = entry.role or role_of(name)
    own = tuple(root / folder for folder in (entry.images, declared.images) if folder is not None)
    index = root / entry.file if entry.file is not None else usual_file
    if (
        entry.file is None
        and index is not None
        and not index.is_file()
        and _does_without(entry, declared, role)
    ):
        index = None
    # Folders that are named are meant: guesses would hide a typing error.
    return Subset(
        index,
        own or usual_images,
        role,
        entry.train_split,
        annotations=None if entry.annotations is None else root / entry.annotations,
        ids=None if entry.ids is None else root / entry.ids,
    )


def _usual(name: str, layout: Layout, root: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """The file and the folders of images of a subset that says neither."""
    if layout == "voc":
        return root / f"ImageSets/Main/{name}.txt", voc_image_folders(root)
    if layout == "coco":
        return root / f"annotations/instances_{name}.json", coco_image_folders(root, name)
    if layout in ("folder", "label-studio"):
        suffix = "csv" if layout == "folder" else "json"
        return root / f"{name}.{suffix}", folder_image_folders(root, name)
    return None, tuple(root / folder for folder in (name, f"images/{name}", "images", "."))


def _does_without(entry: DeclaredSubset, declared: DeclaredDataset, role: Role | None) -> bool:
    """Whether a subset without a file is every image of its folder: tests of tables, XML beside the images."""
    if declared.format == "voc":
        return entry.images is not None or entry.annotations is not None
    return declared.format == "folder" and role == "test"
