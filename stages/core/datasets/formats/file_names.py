"""From file names as tables have them to the images of a folder.

``C:\\me\\p0.jpg``, ``https://example.org/p0.jpg``, ``images/p0.jpg``, ``P0.JPG`` and ``p0`` may all be ``p0.jpg``.
A name that is exactly that of a file always is that file; others are matched where only one file comes into question.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from stages.core.datasets.image_files import images_below, images_in
from stages.core.datasets.split import existing_folder
from stages.core.errors import SchemaError

_UPLOAD = r"^[0-9a-f]{8}-"
"""What Label Studio puts before the name of an uploaded file."""


def image_folder(candidates: Sequence[Path], file_names: Sequence[str]) -> Path:
    """The folder that holds most of the first images listed; the earlier one on a tie.

    Where none holds any under the name listed, the first that holds images.

    Raises:
        MissingInputError: none of the folders exists.
    """
    probe = [name for name in file_names[:20] if is_inside(name)]
    hits = [sum((folder / name).is_file() for name in probe) for folder in candidates]
    if any(hits):
        return candidates[hits.index(max(hits))]
    return next((folder for folder in candidates if images_in(folder)), None) or existing_folder(candidates)


def is_inside(name: str) -> bool:
    """Whether a name stays below the folder it is relative to."""
    parts = PurePosixPath(name)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts


def resolve_names(names: Sequence[str], folder: Path) -> tuple[dict[str, str], list[str]]:
    """Find the file of every name.

    Args:
        names: As they are written somewhere.
        folder: Where the images are.

    Returns:
        Name -> path below the folder; a name of no file is itself. What a user should know of the names that are
        spelled otherwise.

    Raises:
        SchemaError: a name of no file here that is absolute or leads out of the folder.
    """
    found = {name: name for name in names if is_inside(name) and (folder / name).is_file()}
    others = [name for name in dict.fromkeys(names) if name not in found]
    if not others:
        return found, []
    index = _index(folder)
    changed: list[tuple[str, str]] = []
    for name in others:
        match = _match(name, index)
        if match is None:
            if not is_inside(str(_as_path(name))) or name[1:2] == ":":
                raise SchemaError(
                    f"'{name}' is not a file name below the image folder {folder}, nor is one of its images called so",
                    hint="write paths relative to the folder of images",
                )
            found[name] = name
        else:
            found[name] = match
            changed.append((name, match))
    if not changed:
        return found, []
    first, file = changed[0]
    return found, [f"{len(changed)} file names are spelled otherwise than on disk ('{first}' is {file})"]


def _as_path(name: str) -> PurePosixPath:
    path = name
    if "://" in name or "/?d=" in name:  # an address; Label Studio's local files are a query
        address = urlsplit(name)
        path = unquote(address.query.removeprefix("d=") if address.query.startswith("d=") else address.path)
    return PurePosixPath(unicodedata.normalize("NFC", path).replace("\\", "/"))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _index(folder: Path) -> Mapping[str, list[str]]:
    """Base name, and the same without suffix, without regard to capitals -> images."""
    found: dict[str, list[str]] = {}
    for name in images_below(folder) if folder.is_dir() else []:
        base = _key(PurePosixPath(name).name)
        found.setdefault(base, []).append(name)
        found.setdefault(base.rpartition(".")[0], []).append(name)
    return found


def _match(name: str, index: Mapping[str, list[str]]) -> str | None:
    """The one image that a name can be, if there is one; folders above tell apart what has one base name."""
    path = _as_path(name)
    candidates = index.get(_key(path.name)) or index.get(_key(re.sub(_UPLOAD, "", path.name)), [])
    if not candidates:
        return None
    shared = [_shared_tail(path, PurePosixPath(candidate)) for candidate in candidates]
    best = [candidate for candidate, count in zip(candidates, shared, strict=True) if count == max(shared)]
    return best[0] if len(best) == 1 else None


def _shared_tail(first: PurePosixPath, second: PurePosixPath) -> int:
    pairs = zip(map(_key, reversed(first.parts)), map(_key, reversed(second.parts)), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
