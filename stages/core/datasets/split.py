"""What a stage sees of a data set: images and tags. Weak means weak: no box or mask can be had from here.

Readers hand over a :class:`Listing`; :func:`assemble` checks the files and freezes it into a
:class:`WeakSplit`, which holds neither the annotations nor the path to them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from stages.core.errors import GroundTruthForbiddenError, MissingInputError, SchemaError

Role = Literal["train", "test"]
ProblemKind = Literal["no_tags", "missing_image", "missing_annotation"]


@dataclass(frozen=True)
class Problem:
    """An image that is listed but left out of the split, and why; counted as a failure in manifests."""

    id: str
    reason: str
    kind: ProblemKind


@dataclass(frozen=True)
class ListedImage:
    """One image as a reader lists it.

    Attributes:
        id: Unique text id.
        coco_id: Integer id for COCO JSON.
        file_name: Path relative to the image folder; None when no file of that id was found.
        tags: Sorted 0-based class indices; None when the image has no annotation to read them from.
        untagged: Why ``tags`` is empty or None, for the message.
        negative: Whether it is stated that the image shows none of the classes.
    """

    id: str
    coco_id: int
    file_name: str | None
    tags: tuple[int, ...] | None
    untagged: str = "it has no tag"
    negative: bool = False


@dataclass(frozen=True)
class Listing:
    """What a reader found: class list, image folder, the images sorted by id, and how they were read."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_folder: Path
    images: tuple[ListedImage, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeakSplit:
    """Images of a split and, on train splits, their tags.

    Attributes:
        name: ``<dataset>_<subset>``.
        role: ``train`` = fit, then apply; ``test`` = apply only, tags are withheld.
        train_split: Name of the data set's train split; a train split's own name.
        classes: Class names by index.
        category_ids: COCO category ids aligned with ``classes``.
        ids: Image ids in the order of ``sorted`` on text.
        problems: Images that are listed but left out.
        notes: What a user should know of how the data set was read.
    """

    name: str
    dataset: str
    subset: str
    role: Role
    train_split: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    ids: tuple[str, ...]
    problems: tuple[Problem, ...]
    _image_folder: Path = field(repr=False)
    _file_names: tuple[str, ...] = field(repr=False)
    _file_sizes: tuple[int, ...] = field(repr=False)
    _coco_ids: tuple[int, ...] = field(repr=False)
    _tags: tuple[tuple[int, ...], ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self._file_names) == len(self._file_sizes) == len(self._coco_ids)
        assert list(self.ids) == sorted(set(self.ids)), "ids must be unique and sorted"
        assert len(self._tags) == (len(self.ids) if self.role == "train" else 0)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_tags(self) -> bool:
        """Whether :meth:`tags` may be asked: on train splits only."""
        return self.role == "train"

    @functools.cached_property
    def _position(self) -> dict[str, int]:
        return {image_id: i for i, image_id in enumerate(self.ids)}

    @functools.cached_property
    def _id_by_number(self) -> dict[int, str]:
        return dict(zip(self._coco_ids, self.ids, strict=True))

    def file_name(self, image_id: str) -> str:
        """File name relative to the data set's image folder."""
        return self._file_names[self._position[image_id]]

    def image_path(self, image_id: str) -> Path:
        """Path of the image file."""
        return self._image_folder / self.file_name(image_id)

    def tags(self, image_id: str) -> tuple[int, ...]:
        """Sorted 0-based indices of the classes the image shows; empty where it is stated that it shows none.

        Raises:
            GroundTruthForbiddenError: on a test split.
        """
        if not self.has_tags:
            raise GroundTruthForbiddenError(
                f"image tags of the test split {self.name} are ground truth; classes must be predicted",
                hint=f"use a train split such as {self.train_split}",
            )
        return self._tags[self._position[image_id]]

    def coco_id(self, image_id: str) -> int:
        """Integer id for COCO JSON: COCO's own, else the 1-based position in the complete listed split."""
        return self._coco_ids[self._position[image_id]]

    def id_of(self, coco_id: int) -> str:
        """Inverse of :meth:`coco_id`; ``KeyError`` for an image that is not in the split."""
        return self._id_by_number[coco_id]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over role, classes, category ids, image ids, COCO ids, file names, file sizes in bytes, and tags."""
        tags = self._tags or ((),) * len(self.ids)
        images = list(zip(self.ids, self._coco_ids, self._file_names, self._file_sizes, tags, strict=True))
        text = json.dumps([self.role, self.classes, self.category_ids, images], ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @functools.cached_property
    def content_fingerprint(self) -> str:
        """sha256 over role, classes, and base name, size in bytes and tags of every image: equal in whatever layout."""
        tags = self._tags or ((),) * len(self.ids)
        names = (Path(name).name for name in self._file_names)
        images = sorted(zip(names, self._file_sizes, tags, strict=True))
        text = json.dumps([self.role, self.classes, images], ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def limited(self, count: int) -> WeakSplit:
        """The first ``count`` images (all, if fewer), with the problems that sort before the last of them.

        Integer ids stay what they were in the complete split.
        """
        if count >= len(self.ids):
            return self
        kept = self.ids[:count]
        return replace(
            self,
            ids=kept,
            problems=tuple(p for p in self.problems if kept and p.id < kept[-1]),
            _file_names=self._file_names[:count],
            _file_sizes=self._file_sizes[:count],
            _coco_ids=self._coco_ids[:count],
            _tags=self._tags[:count],
        )


def assemble(name: str, subset: str, role: Role, train_split: str, listing: Listing) -> WeakSplit:
    """Check the files of a listing and freeze it.

    Images without a file and, on a train split, without a tag become problems. On a test split tags are
    thrown away here.

    Raises:
        MissingInputError: not one image file exists.
        SchemaError: the split is empty, or no image of a train split has a tag.
    """
    if not listing.images:
        raise SchemaError(f"split {name} lists no image", where=listing.image_folder)
    problems: list[Problem] = []
    kept: list[tuple[ListedImage, str, int]] = []
    for image in listing.images:
        found = _file(image, listing.image_folder)
        problem = _problem(image, found, role)
        if problem is not None:
            problems.append(problem)
        elif found is not None:
            kept.append((image, *found))
    if not kept or (role == "train" and not any(image.tags for image, _, _ in kept)):
        _refuse(name, listing, problems)
    return WeakSplit(
        name=name,
        dataset=name.removesuffix("_" + subset),
        subset=subset,
        role=role,
        train_split=train_split,
        classes=listing.classes,
        category_ids=listing.category_ids,
        ids=tuple(image.id for image, _, _ in kept),
        problems=tuple(problems),
        _image_folder=listing.image_folder,
        _file_names=tuple(file_name for _, file_name, _ in kept),
        _file_sizes=tuple(size for _, _, size in kept),
        _coco_ids=tuple(image.coco_id for image, _, _ in kept),
        _tags=tuple(image.tags or () for image, _, _ in kept) if role == "train" else (),
        notes=listing.notes,
    )


def existing_folder(candidates: Sequence[Path]) -> Path:
    """The first folder that exists.

    Raises:
        MissingInputError: none does.
    """
    for folder in candidates:
        if folder.is_dir():
            return folder
    hint = "put the images there, or say where they are with 'images:' in dataset.yaml"
    others = "".join(f", nor does {folder.name}" for folder in candidates[1:])
    raise MissingInputError(f"this folder of images does not exist{others}", where=candidates[0], hint=hint)


def _file(image: ListedImage, folder: Path) -> tuple[str, int] | None:
    """File name and size in bytes, or None when there is no such file."""
    if image.file_name is None:
        return None
    try:
        return image.file_name, (folder / image.file_name).stat().st_size
    except (OSError, ValueError):  # names that are too long, hold a NUL, lead through a link to itself
        return None


def _problem(image: ListedImage, found: tuple[str, int] | None, role: Role) -> Problem | None:
    if found is None:
        return Problem(image.id, f"image file {image.file_name or image.id} does not exist", "missing_image")
    if role == "train" and image.tags is None:
        return Problem(image.id, image.untagged, "missing_annotation")
    if role == "train" and not image.tags and not image.negative:
        return Problem(image.id, image.untagged, "no_tags")
    return None


def _refuse(name: str, listing: Listing, problems: list[Problem]) -> None:
    """Say why not one image of a split is usable, or why nothing can be learned from those that are."""
    if not problems:
        raise SchemaError(
            f"none of the {len(listing.images)} images of the train split {name} shows a class",
            where=listing.image_folder,
            hint="tag images that do; negatives alone teach nothing",
        )
    reasons = f"the first: {problems[0].id}, {problems[0].reason}"
    if all(problem.kind == "missing_image" for problem in problems):
        raise MissingInputError(
            f"none of the {len(problems)} images of split {name} exists in this folder ({reasons})",
            where=listing.image_folder,
            hint="put the images there, or say where they are with 'images:' in dataset.yaml",
        )
    raise SchemaError(
        f"no image of the train split {name} is usable, of {len(problems)} listed ({reasons})",
        where=listing.image_folder,
        hint="check the annotations and the list of images",
    )
