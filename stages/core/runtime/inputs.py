"""The files a stage reads: where they are, and that they are whole, fresh and of the same split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.artifacts.files import content_sha256
from stages.core.artifacts.manifest import MANIFEST_NAME, InputRecord, check_input, read_manifest
from stages.core.errors import StaleInputError, UsageError
from stages.core.runtime.request import Request, stage_folder
from stages.core.spec import StageSpec

if TYPE_CHECKING:
    from stages.core.datasets.split import WeakSplit


def find_inputs(stage: StageSpec, split: WeakSplit, request: Request) -> dict[str, Path]:
    """Return the input files by name: those given by hand, and those of the run folder that the role needs.

    Raises:
        UsageError: a file was given that the stage does not read.
    """
    names = {needed.name for needed in stage.inputs}
    for name in request.overrides:
        if name not in names:
            raise UsageError(f"{stage.name} reads no {name}", where=f"--{name}")
    inputs: dict[str, Path] = {}
    for needed in stage.inputs:
        if needed.name in request.overrides:
            inputs[needed.name] = request.overrides[needed.name]
        elif split.role in needed.roles:
            maker = split.train_split if needed.split == "train" else request.split
            path = stage_folder(request.run, needed.producer, maker) / needed.file_name
            if path.is_file() or not needed.optional:
                inputs[needed.name] = path
    return inputs


def check_inputs(
    stage: StageSpec, inputs: dict[str, Path], split: WeakSplit, request: Request
) -> dict[str, InputRecord]:
    """Check every input file and return its path and SHA-256 by name, for the manifest.

    Raises:
        MissingInputError: no such file, or the stage that writes it has not finished.
        StaleInputError: the file, something it was made from, or the split has changed since.
    """
    records = {}
    for needed in stage.inputs:
        if needed.name in inputs:
            path = inputs[needed.name]
            digest = check_input(path, request.run, needed.producer)
            _check_same_split(path, split, request)
            records[needed.name] = InputRecord(_shown(path, request.run), digest)
    return records


def weight_records(weights: Mapping[str, Path]) -> dict[str, InputRecord]:
    """Return name and SHA-256 of the weights that the settings ask for, for the manifest."""
    return {
        name: InputRecord(path.name, content_sha256(path)) for name, path in weights.items() if path.exists()
    }


def _shown(path: Path, run: Path) -> str:
    path, run = path.resolve(), run.resolve()
    return path.relative_to(run).as_posix() if path.is_relative_to(run) else path.name


def _check_same_split(path: Path, split: WeakSplit, request: Request) -> None:
    """Refuse a file made of a split of the same name that had other images, tags or classes."""
    if not (path.parent / MANIFEST_NAME).is_file():
        return
    made = read_manifest(path.parent)
    # With another --limit the images differ by intention.
    same = (made.split, made.limit) == (split.name, request.limit)
    if same and made.split_fingerprint not in ("", split.fingerprint):
        raise StaleInputError(
            f"made when {split.name} had other images, tags or classes",
            where=path,
            hint=f"run `weaksam {made.stage} --split {split.name} --overwrite` and what follows it again",
        )
