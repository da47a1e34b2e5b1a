"""Whether bytes are what the table says: size, SHA-256, MD5 prefix, and plainly not a web page."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from stages.core.artifacts.files import file_sha256
from stages.core.weights.table import Weights


@dataclass(frozen=True)
class Mismatch:
    """How a file differs from its line of the table, in words."""

    what: str


def looks_like_markup(head: bytes) -> bool:
    """Whether the first bytes are those of a web page or XML; no weights format begins so."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


def file_is_markup(path: Path) -> bool:
    """:func:`looks_like_markup` of a file."""
    with path.open("rb") as stream:
        return looks_like_markup(stream.read(512))


def published_mismatch(entry: Weights, path: Path) -> Mismatch | None:
    """How a file differs from the published one, cheapest test first; None if in nothing that is known."""
    if file_is_markup(path):
        return Mismatch("a web page came instead of weights")
    size = path.stat().st_size
    if entry.size is not None and size != entry.size:
        kind = "truncated" if size < entry.size else "too long"
        return Mismatch(f"{kind}: {size:,} bytes, {entry.size:,} expected")
    if entry.sha256:
        found = file_sha256(path)
        if found != entry.sha256.lower():
            return Mismatch(f"wrong checksum: SHA-256 {found[:12]}..., {entry.sha256[:12]}... expected")
    elif entry.md5_prefix:
        with path.open("rb") as stream:
            md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if not md5.startswith(entry.md5_prefix):
            return Mismatch(f"wrong checksum: MD5 {md5[:6]}..., {entry.md5_prefix}... expected")
    return None


def known_of(entry: Weights) -> str:
    """What :func:`published_mismatch` can compare, in words."""
    known = [
        name
        for name, value in (
            ("size", entry.size),
            ("SHA-256", entry.sha256),
            ("MD5 prefix", entry.md5_prefix),
        )
        if value
    ]
    return ", ".join(known) or "nothing but the architecture"
