"""What a shell offers after TAB: splits, runs, recipes, weights, settings and their choices; cheap, without torch.

Nothing here may fail or print: a shell that completes shows the user neither.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from stages.core.registry import CHAIN

VARIABLES = ("_TYPER_COMPLETE_ARGS", "COMP_WORDS")
"""Where a shell puts the words of the command line that it wants completed."""


def words_to_complete() -> list[str]:
    """Words of the command line that a shell wants completed; none when nothing is being completed."""
    return next((text.split() for name in VARIABLES if (text := os.environ.get(name))), [])


def splits(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the splits that ``--data`` holds."""
    from stages.core.datasets.catalog import data_root, list_splits

    with contextlib.suppress(Exception):
        return _beginning(list_splits(data_root(ctx.params.get("data"))), incomplete)
    return []


def datasets(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the data sets that ``--data`` holds."""
    return list(dict.fromkeys(name.rpartition("_")[0] for name in splits(ctx, incomplete)))


def label_formats(incomplete: str) -> list[str]:
    """Forms in which boxes can be written."""
    return _beginning(("yolo", "voc", "csv", "labelstudio"), incomplete)


def stages(incomplete: str) -> list[str]:
    """Names of the stages."""
    return _beginning(CHAIN, incomplete)


def runs(incomplete: str) -> list[str]:
    """Folders below ``runs``."""
    return _beginning((path.as_posix() for path in sorted(Path("runs").glob("*/"))), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Names of the shipped recipes, and YAML files here."""
    from stages.core.config import recipe_names

    return _beginning([*recipe_names(), *(path.name for path in sorted(Path().glob("*.yaml")))], incomplete)


def weights(incomplete: str) -> list[str]:
    """Names of shipped and published weights."""
    from stages.core.weights.table import weights_table

    with contextlib.suppress(Exception):
        return _beginning(weights_table(), incomplete)
    return []


def segmenters(incomplete: str) -> list[str]:
    """Names of promptable segmenters: those that have weights."""
    return weights(incomplete)


def devices(incomplete: str) -> list[str]:
    """Words for devices; how many GPUs there are would need torch."""
    return _beginning(["auto", "cpu", "cuda", "cuda:0"], incomplete)


def assignments(ctx: typer.Context, incomplete: str) -> list[str]:
    """Settings of the stage on the command line, ``KEY=``; of all stages, ``STAGE.KEY=``, elsewhere."""
    from stages.core.config import config_class
    from stages.core.config.model import setting_fields
    from stages.core.config.values import choices

    stage = ctx.info_name if ctx.info_name in CHAIN else None
    found = []
    for owner in [stage] if stage else CHAIN:
        for path, field in setting_fields(config_class(owner)):
            name = ".".join(path if stage else (owner, *path))
            found += [f"{name}={word}" for word in choices(field.annotation)] or [f"{name}="]
    return _beginning(found, incomplete)


def of_setting(name: str, words: tuple[str, ...]) -> Any:
    """The completion of a setting's flag: its choices, or the segmenters; None if there is nothing to offer."""
    if name.rpartition(".")[2] == "segmenter":
        return segmenters
    if not words:
        return None

    def offered(incomplete: str) -> list[str]:
        return _beginning(words, incomplete)

    return offered


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
