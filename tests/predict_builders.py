"""`predict` as a command, and runs that it takes for finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.core.artifacts.manifest import Manifest, write_manifest
from tests.command_builder import run


def finished(folder: Path, stage: str, files: tuple[str, ...], config: dict[str, Any] | None = None) -> None:
    """The manifest that the stage would have left."""
    write_manifest(
        folder,
        Manifest(
            stage=stage, split=folder.name, config=config or {}, seed=0, version="0", git=None, command=[],
            outputs=dict.fromkeys(files, ""),
        ),
    )  # fmt: skip


def predict(*arguments: object) -> int:
    return run("-q", "predict", *(str(a) for a in arguments), "--workers", "0", "--device", "cpu")
