"""Which image of a split each image of a COCO file is: by file name, never by number alone.

Tools renumber images when they export, and the integer ids of VOC and folder data sets are positions in a list: the
same number in two files says nothing. Names are compared as paths of normalized Unicode, whatever the separator.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from stages.core.errors import SchemaError

Number = int | str
"""Id of an image in a COCO file; the standard says an integer, camera traps have text."""


class NamedImages(Protocol):
    """What matching needs of a split."""

    @property
    def name(self) -> str: ...
    @property
    def ids(self) -> tuple[str, ...]: ...
    def coco_id(self, image_id: str) -> int: ...
    def file_name(self, image_id: str) -> str: ...


@dataclass(frozen=True)
class ImageMatches:
    """The images of a file that a split holds, and those that it does not.

    Attributes:
        image_ids: Id in the file -> image id of the split.
        unknown: Id in the file -> file name, of images that the split does not hold.
    """

    image_ids: Mapping[Number, str]
    unknown: Mapping[Number, str]


def match_images(entries: Sequence[Any], split: NamedImages, path: Path) -> ImageMatches:
    """Find the images of a COCO file in a split.

    A file name that is one of the split's is that image. Any other is the image that shares its base name; of several,
    the one that shares most of the folders above; of several of these, the one of the same id, if ids agree wherever
    names decide. What is still open is refused.

    Args:
        entries: The section ``images`` of the file.
        split: Where the images are looked for.
        path: The file, for messages.

    Raises:
        SchemaError: an entry without id or ``file_name``, an id used twice, two entries that are the same image, a name
            that may be several images, or not one image of the split.
    """
    names = _names_by_number(entries, path)
    own = {image_id: _path_of(split.file_name(image_id)) for image_id in split.ids}
    whole = {name: image_id for image_id, name in own.items()}
    found = {number: whole[name] for number, name in names.items() if name in whole}
    open_names = {number: name for number, name in names.items() if number not in found}
    taken = set(found.values())
    by_base = _by_base_name({i: name for i, name in own.items() if i not in taken}) if open_names else {}
    nearest = {
        number: _nearest(name, by_base[name.name])
        for number, name in open_names.items()
        if name.name in by_base
    }
    found |= {number: images[0] for number, images in nearest.items() if len(images) == 1}
    ids_agree = bool(found) and all(split.coco_id(image) == number for number, image in found.items())
    for number, images in nearest.items():
        if len(images) > 1:
            same = [image for image in images if ids_agree and split.coco_id(image) == number]
            if not same:
                raise _ambiguous(names[number], images, path)
            found[number] = same[0]
    _refuse_twice(found, names, path)
    unknown = {number: str(name) for number, name in names.items() if number not in found}
    if unknown and not found:
        raise SchemaError(
            f"none of its {len(unknown)} images is in split {split.name}; the first is "
            f"'{next(iter(unknown.values()))}', the split has '{split.file_name(split.ids[0])}'",
            where=path,
            hint="use a file made for the images of this split; they are matched by file_name",
        )
    return ImageMatches(found, unknown)


def _path_of(name: str) -> PurePosixPath:
    """A file name as a path; ``..`` and ``.`` say where a tool's project lay, not what the image is called."""
    normal = unicodedata.normalize("NFC", name).replace("\\", "/")
    return PurePosixPath(*(part for part in PurePosixPath(normal).parts if part not in ("..", ".", "/")))


def _names_by_number(entries: Sequence[Any], path: Path) -> dict[Number, PurePosixPath]:
    names: dict[Number, PurePosixPath] = {}
    for position, entry in enumerate(entries):
        number = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(number, int | str) or isinstance(number, bool):
            raise SchemaError(f"image {position} is not a COCO entry with an id", where=path, hint=_EXPORT)
        name = entry.get("file_name")
        if not isinstance(name, str) or not name.strip("./\\ "):
            raise SchemaError(
                f"image {position} (id {number}) has file_name {name!r}; images are matched by it",
                where=path,
                hint=_EXPORT,
            )
        if number in names:
            raise SchemaError(f"image id {number} is used twice", where=path, hint=_EXPORT)
        names[number] = _path_of(name)
    return names


_EXPORT = "correct the file, or export it again"


def _by_base_name(names: Mapping[str, PurePosixPath]) -> dict[str, dict[str, PurePosixPath]]:
    found: dict[str, dict[str, PurePosixPath]] = {}
    for image_id, name in names.items():
        found.setdefault(name.name, {})[image_id] = name
    return found


def _nearest(name: PurePosixPath, images: Mapping[str, PurePosixPath]) -> list[str]:
    """Images whose paths end like ``name`` over the most parts."""
    shared = {image_id: _shared_tail(name, other) for image_id, other in images.items()}
    most = max(shared.values())
    return [image_id for image_id, count in shared.items() if count == most]


def _shared_tail(first: PurePosixPath, second: PurePosixPath) -> int:
    pairs = zip(reversed(first.parts), reversed(second.parts), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _refuse_twice(found: Mapping[Number, str], names: Mapping[Number, PurePosixPath], path: Path) -> None:
    owner: dict[str, Number] = {}
    for number, image_id in found.items():
        first = owner.setdefault(image_id, number)
        if first != number:
            raise SchemaError(
                f"'{names[first]}' (id {first}) and '{names[number]}' (id {number}) are the same image '{image_id}'",
                where=path,
                hint="list every image once, under its file name in the data set",
            )


def _ambiguous(name: PurePosixPath, images: Iterable[str], path: Path) -> SchemaError:
    options = ", ".join(sorted(images)[:3])
    return SchemaError(
        f"'{name}' may be any of several images of the split ({options})",
        where=path,
        hint="write file names with the folders that tell them apart",
    )
