"""Fonts for labels in any script: Pillow's own where it has the letters, else one of the system's, or $WEAKSAM_FONT."""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

from stages.core.errors import EnvironmentFault

FONT_VARIABLE = "WEAKSAM_FONT"
FOLDERS = (
    "~/.local/share/fonts",
    "~/.fonts",
    "/usr/local/share/fonts",
    "/usr/share/fonts",
    "~/Library/Fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "C:/Windows/Fonts",
)
"""Where systems keep their fonts; those that do not exist are skipped."""
SUFFIXES = (".ttf", ".ttc", ".otf")
PREFERRED = ("notosans", "dejavusans", "arialunicode", "sourcehansans", "msyh", "pingfang")
"""Beginnings of names of fonts of many letters in a plain style; others come after them."""
UNASSIGNED = "\U0010fffe"
"""No character: what a font draws for it is what it draws for all that it lacks."""
PROBE_SIZE = 24

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def legible(text: str, size: int) -> tuple[str, Font]:
    """Return a text as it can be drawn here, and the font to draw it in.

    Pillow's own font, the only one that is everywhere, has Latin letters without accents: "café" becomes "cafe". Text
    of other scripts is drawn in $WEAKSAM_FONT, or in a font of the system that has all its letters; where there is
    none, question marks stand for what cannot be drawn.

    Args:
        text: What a label says.
        size: Height of the font, pixels.

    Raises:
        EnvironmentFault: $WEAKSAM_FONT is no font.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    if _covers("", plain):
        return plain, _loaded("", size)
    for path in _candidates(os.environ.get(FONT_VARIABLE, "")):
        if _covers(path, text):
            return text, _loaded(path, size)
    return "".join(c if _covers("", c) else "?" for c in plain), _loaded("", size)


@functools.cache
def _candidates(chosen: str) -> tuple[str, ...]:
    """Return the files of fonts to try, in order: the chosen one, then those of the system."""
    if chosen:
        try:
            _loaded(chosen, PROBE_SIZE)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot be read as a font ({error})",
                where=chosen,
                hint=f"set {FONT_VARIABLE} to a .ttf, .ttc or .otf file, or unset it",
            ) from error
    installed = sorted(_installed(), key=lambda path: (_rank(path), path.as_posix()))
    return (*([chosen] if chosen else []), *map(str, installed))


def _installed() -> Iterator[Path]:
    for folder in map(Path, FOLDERS):
        for path in folder.expanduser().rglob("*"):
            if path.suffix.lower() in SUFFIXES:
                yield path


def _rank(path: Path) -> int:
    name = path.stem.lower().replace("-", "").replace(" ", "")
    found = [i for i, beginning in enumerate(PREFERRED) if name.startswith(beginning)]
    plain = not any(style in name for style in ("bold", "italic", "oblique", "light", "condensed", "mono"))
    return (found[0] if found else len(PREFERRED)) * 2 + (not plain)


@functools.lru_cache(maxsize=64)
def _loaded(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size=size)


@functools.lru_cache(maxsize=4096)
def _covers(path: str, text: str) -> bool:
    """Whether a font has a glyph for every character of a text; "" is Pillow's own."""
    try:
        font = _loaded(path, PROBE_SIZE)
        missing = bytes(font.getmask(UNASSIGNED))
        return all(c.isspace() or bytes(font.getmask(c)) != missing for c in set(text))
    except OSError:  # a font of the system that is damaged
        return False
