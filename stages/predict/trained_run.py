"""What a run offers to `predict`: its detector, the sizes it was trained at, and how its masks were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.core.artifacts.manifest import MANIFEST_NAME, read_manifest
from stages.core.detectors.checkpoints import DetectorFile, recorded_view_sizes
from stages.core.errors import MissingInputError, UsageError, did_you_mean
from stages.core.registry import chain_specs
from stages.core.settings import BoxToMaskSettings

CHECKPOINTS = {
    spec.name: output.file_name
    for spec in chain_specs()
    for output in spec.outputs
    if output.kind == "detector"
}
"""Stages whose model needs nothing but an image, and the name of its file."""

MASK_SETTINGS = tuple(name for name in BoxToMaskSettings.model_fields if name != "prompts_per_batch")
"""Settings of `wsis` that a mask depends on; how many prompts fit into memory is the machine's matter."""


def find_detector(run: Path | None, stage: str) -> Path:
    """Return the finished detector of a run.

    Raises:
        UsageError: no run given, no such stage, or several detectors to choose from.
        MissingInputError: the stage has not finished in this run.
    """
    if stage not in CHECKPOINTS:
        raise UsageError(
            f"'{stage}' trains no detector that needs an image alone",
            where="--stage",
            hint=did_you_mean(stage, CHECKPOINTS),
        )
    if run is None:
        raise UsageError("which detector?", where="predict", hint=_known_runs(stage))
    found = sorted((run / stage).glob(f"*/{CHECKPOINTS[stage]}"))
    finished = [path for path in found if (path.parent / MANIFEST_NAME).is_file()]
    if len(finished) > 1:
        names = ", ".join(path.as_posix() for path in finished)
        raise UsageError(f"several detectors: {names}", where=run, hint="choose one with --detector FILE")
    if not finished:
        state = "has not finished" if found else "was not run"
        raise MissingInputError(f"{stage} {state} in this run", where=run, hint=_how_to_get(run, stage))
    return finished[0]


def _known_runs(stage: str) -> str:
    runs = sorted({str(path.parents[2]) for path in Path("runs").glob(f"*/{stage}/*/{CHECKPOINTS[stage]}")})
    known = f" (here: {', '.join(runs)})" if runs else ""
    return f"give --run RUN{known} or --detector FILE"


def _how_to_get(run: Path, stage: str) -> str:
    others = (
        name for name in CHECKPOINTS if name != stage and any((run / name).glob(f"*/{CHECKPOINTS[name]}"))
    )
    other = next(others, None)
    hint = f", or use --stage {other}" if other else ""
    return f"run `weaksam {stage} --split <dataset>_train --run {run}` first{hint}"


def training_view_sizes(detector: DetectorFile) -> tuple[int, ...]:
    """Return the short sides, pixels, that a detector was trained at.

    Raises:
        UsageError: the manifest beside the file, which has its settings, is not there.
    """
    sizes = recorded_view_sizes(detector.path)
    if not sizes:
        raise UsageError(
            "the sizes that the detector was trained at are not recorded beside it",
            where=detector.path,
            hint="name the short sides of the views, e.g. --tta-short-sides 480,576,688",
        )
    return sizes


def mask_settings(run: Path | None) -> dict[str, Any]:
    """Return how `wsis` made masks in this run; nothing where it did not: then the defaults hold.

    Folders of test splits have settings too, but none that a mask was made with.
    """
    for masks in sorted(run.glob("wsis/*/pgt_masks.json")) if run is not None else ():
        if (masks.parent / MANIFEST_NAME).is_file():
            config = read_manifest(masks.parent).config
            return {name: config[name] for name in MASK_SETTINGS if name in config}
    return {}
