"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stages.core.artifacts.files import atomic_path, write_text


def test_atomic_path__writers_that_replace_the_file_leave_it_readable(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "a.bin") as temporary:
            private = temporary.with_name("private")
            private.touch(mode=0o600)
            private.replace(temporary)
        write_text(tmp_path / "b.txt", "b")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.bin", "b.txt")] == [0o640, 0o640]


def test_atomic_path__a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
