"""HDF5 files on a disk that may be full: the error is raised, where HDF5 itself would end the process.

When a write fails, HDF5 keeps what it could not write, tries again while it closes the file, and crashes. So it writes
through a Python file that keeps the first error to itself, accepts the rest, and raises it once HDF5 has closed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from stages.core.errors import SchemaError

PAGE = 4096
LARGEST_KEPT = 32 * 1024
"""Bytes of a write that HDF5 may want to read again, its own records; columns are written in larger pieces."""


@contextlib.contextmanager
def created_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yield a new HDF5 file, open for writing.

    Raises:
        OSError: something could not be written, as the operating system says it.
    """
    with path.open("w+b", buffering=0) as stream:
        kept = _ErrorKeepingFile(stream)
        with h5py.File(kept, "w", track_order=True) as file:
            yield file
        if kept.error is not None:
            raise kept.error


def read_attributes(path: Path) -> dict[str, Any]:
    """Return what is noted in an HDF5 file beside its columns.

    Raises:
        SchemaError: not an HDF5 file, or one that was cut.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            return dict(file.attrs)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise SchemaError(f"cannot be read as HDF5 ({error})", where=path) from error


class _ErrorKeepingFile(io.RawIOBase):
    """A file that accepts everything after its first failed write; what it then holds is of no use.

    Args:
        stream: The file on disk, unbuffered.
    """

    def __init__(self, stream: io.FileIO) -> None:
        self.error: OSError | None = None
        self._stream = stream
        self._place = 0
        self._pages: dict[int, bytearray] = {}  # by number; small writes after the error

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        """Write everything, or keep the error and accept it all the same."""
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._stream.seek(self._place)
                written = 0
                while written < len(view):
                    written += self._stream.write(view[written:]) or 0
            except OSError as error:
                self.error = error
        if self.error is not None and len(view) <= LARGEST_KEPT:
            self._remember(view)
        self._place += len(view)
        return len(view)

    def _remember(self, view: memoryview) -> None:
        for offset, value in enumerate(view, self._place):
            number = offset // PAGE
            if number not in self._pages:
                self._pages[number] = bytearray(self._on_disk(number * PAGE, PAGE))
            self._pages[number][offset % PAGE] = value

    def _on_disk(self, place: int, count: int) -> bytes:
        """Return bytes of the file, zeros beyond its end."""
        self._stream.seek(place)
        return (self._stream.read(count) or b"").ljust(count, b"\0")

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read what was written, zeros elsewhere."""
        count = len(buffer)
        found = bytearray(self._on_disk(self._place, count))
        for number, page in self._pages.items():
            start, end = max(self._place, number * PAGE), min(self._place + count, (number + 1) * PAGE)
            if start < end:
                found[start - self._place : end - self._place] = page[
                    start % PAGE : start % PAGE + end - start
                ]
        buffer[:] = found
        self._place += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place}
        self._place = offset + base[whence] if whence in base else self._stream.seek(offset, whence)
        return self._place

    def tell(self) -> int:
        """Return the position."""
        return self._place

    def truncate(self, size: int | None = None) -> int:
        """Cut or enlarge."""
        size = self._place if size is None else size
        if self.error is None:
            try:
                self._stream.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Nothing is held back."""

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True
