"""Which files of a folder are images of the user: no thumbnails, companions or backups of other programs.

macOS leaves ``._x.jpg`` beside ``x.jpg`` and ``__MACOSX`` in archives, Jupyter ``.ipynb_checkpoints``, Synology
``@eaDir``: copies with the suffix of the original and other content, or a smaller image. Links to folders are followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2", ".avif",
    ".jfif", ".jpe", ".pjpeg", ".mpo", ".dib", ".apng", ".heic", ".heif",
)  # fmt: skip
"""Suffixes of images in lower case, preferred ones first. HEIC cannot be decoded, which the image loader says then."""

FOREIGN_FOLDERS = frozenset({"@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found"})
"""Folders that systems make beside a user's own, in lower case."""


def is_foreign(name: str) -> bool:
    """Whether a file or folder of this name is hidden or some system's own."""
    return name.startswith(".") or name.lower() in FOREIGN_FOLDERS


def has_image_suffix(name: str) -> bool:
    """Whether a file name ends like that of an image, in capitals or not."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - faster than a Path per file


def visible_files(folder: Path, suffix: str) -> list[Path]:
    """Files in a folder that end in a suffix, in capitals or not; sorted, without hidden ones.

    Args:
        folder: Where to look, not below; one that does not exist has no files.
        suffix: For example ``.xml``.
    """
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name.lower().endswith(suffix) and not is_foreign(path.name) and path.is_file()
    ]


def visible_folders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones and those of a system."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if not is_foreign(path.name) and path.is_dir()]


def images_in(folder: Path) -> list[str]:
    """Names of the images directly in a folder, sorted."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if _is_image(e))


def images_below(folder: Path) -> list[str]:
    """Images in a folder and all folders below, as sorted POSIX paths relative to it.

    Linked folders are entered; a link that leads back to a folder above it is not.
    """
    return sorted(_walk(folder, "", frozenset()))


def _walk(folder: Path, prefix: str, above: frozenset[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if is_foreign(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {real})
        elif _is_image(entry):
            yield prefix + entry.name


def _is_image(entry: os.DirEntry[str]) -> bool:
    return not is_foreign(entry.name) and has_image_suffix(entry.name) and entry.is_file()
