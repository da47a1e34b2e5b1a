"""The command surface is frozen: a flag, default or exit code that changes is a reviewed decision."""

from __future__ import annotations

import difflib

from tests.cli_surface import SNAPSHOT, surface


def test_command_surface__is_that_of_the_snapshot() -> None:
    frozen, now = SNAPSHOT.read_text(encoding="utf-8").splitlines(), surface().splitlines()
    changes = "\n".join(difflib.unified_diff(frozen, now, "frozen", "now", lineterm="", n=0))
    assert not changes, f"{changes}\nif this is meant: python -m tests.cli_surface"
