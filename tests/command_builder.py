"""Commands run in this process."""

from __future__ import annotations

import pytest

from weaksam_cli import main as entry


def run(*arguments: str) -> int:
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as caught:
        entry.main(arguments)
    code = caught.value.code
    return code if isinstance(code, int) else 0 if code is None else 1


def weaksam(*words: object) -> int:
    """Exit code of a command given as words, numbers and paths."""
    return run(*(str(word) for word in words))
