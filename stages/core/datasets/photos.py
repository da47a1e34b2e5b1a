"""Images that belong to no data set: files, folders and patterns as a test split without tags.

What a trained detector is applied to. The ids are paths relative to the folder that all images share.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.core.datasets.image_files import IMAGE_SUFFIXES, has_image_suffix, images_below, is_foreign
from stages.core.datasets.split import ListedImage, Listing, WeakSplit, assemble
from stages.core.errors import InputError, MissingInputError

PHOTOS = "photos"
"""Name of the split."""


def open_photos(wanted: Sequence[str], classes: Sequence[str], leave_out: Sequence[Path] = ()) -> WeakSplit:
    """List images as a test split.

    A folder is searched recursively for files with the suffix of an image, hidden ones excepted; a pattern
    (`*`, `?`, `[...]`, `**`) likewise; a file named by itself is taken whatever its suffix. An image that is
    named twice is taken once.

    Args:
        wanted: Files, folders and patterns.
        classes: Class names of the detector; category ids count from 1.
        leave_out: Folders whose content is not taken up, e.g. the pictures of an earlier run.

    Raises:
        MissingInputError: an argument names nothing that exists.
        InputError: a folder or pattern brings no image.
    """
    excluded = [_absolute(folder) for folder in leave_out]
    found: set[Path] = set()
    for text in wanted:
        found.update(_images_of(text, excluded))
    folder = Path(os.path.commonpath([path.parent for path in found]))
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    images = tuple(ListedImage(name, number, name, None) for number, name in enumerate(names, 1))
    listing = Listing(tuple(classes), tuple(range(1, len(classes) + 1)), folder, images)
    return assemble(PHOTOS, PHOTOS, "test", PHOTOS, listing)


def _images_of(text: str, excluded: Sequence[Path]) -> set[Path]:
    """Absolute paths that one argument stands for."""
    path = Path(text).expanduser()
    if path.is_dir():
        found = set(_below(path, excluded))
    elif path.exists():
        return {_absolute(path)}
    elif not glob.has_magic(text):
        raise MissingInputError(
            "no such image or folder", where=text, hint="give image files, folders or quoted patterns"
        )
    else:
        found = set()
        for name in glob.glob(str(path), recursive=True):  # noqa: PTH207 - the pattern may be absolute
            match = Path(name)
            found.update(_below(match, excluded) if match.is_dir() else _if_image(match, excluded))
    if not found:
        suffixes = " ".join(IMAGE_SUFFIXES)
        if excluded and _images_of(text, ()):
            folders = ", ".join(map(str, excluded))
            raise InputError(
                f"no image found but in {folders}, which is left out: results are written there",
                where=text,
                hint="write them elsewhere, e.g. --out predictions",
            )
        raise InputError("no image found", where=text, hint=f"looked for files ending in {suffixes}")
    return found


def _below(folder: Path, excluded: Sequence[Path]) -> Iterator[Path]:
    for name in images_below(folder):
        yield from _if_image(folder / name, excluded)


def _if_image(path: Path, excluded: Sequence[Path]) -> Iterator[Path]:
    absolute = _absolute(path)
    inside = any(absolute.is_relative_to(folder) for folder in excluded)
    if has_image_suffix(path.name) and not is_foreign(path.name) and path.is_file() and not inside:
        yield absolute


def _absolute(path: Path) -> Path:
    # Links stay what they are called: a name that the user knows is better than where it points.
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - resolve() would follow them
