"""Stages run from Python, with settings as typed objects, mappings or recipes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core.config import StageConfig, build_config, config_class
from stages.core.config.sources import recipe_layers
from stages.core.datasets import catalog
from stages.core.errors import ConfigError, UsageError, did_you_mean
from stages.core.registry import CHAIN
from weaksam.runs import StageResult


def stage_config(
    stage: str, values: Mapping[str, Any] | None = None, recipe: str | None = None
) -> StageConfig:
    """Build the settings of a stage: defaults < recipe < values. ``WEAKSAM_*`` variables play no part.

    Args:
        stage: Name of the stage.
        values: Settings by name, typed or as text; groups are mappings (``{"detr": {"num_queries": 100}}``).
        recipe: Name of a shipped recipe, or the path of one.

    Raises:
        UsageError: no such stage.
        ConfigError: settings that do not exist, or values that they do not take; names every one.
    """
    _check_stage(stage)
    layers = [] if recipe is None else [(name, own.get(stage, {})) for name, own in recipe_layers(recipe)]
    return build_config(config_class(stage), [*layers, ("config", dict(values or {}))])


def run_stage(
    stage: str,
    split: str,
    run: str | Path,
    *,
    config: StageConfig | Mapping[str, Any] | None = None,
    recipe: str | None = None,
    data: str | Path | None = None,
    inputs: Mapping[str, str | Path] | None = None,
    limit: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    workers: int = 0,
    max_failures: str = "5%",
) -> StageResult:
    """Run a stage on a split, as ``weaksam <stage> --split SPLIT`` does; returns when its manifest is written.

    Seeds the global generators of random numbers. Follow the progress through the logger ``weaksam``.

    Args:
        stage: Name of the stage.
        split: ``<dataset>_<subset>``.
        run: Run folder; what the stage reads of other stages is found there.
        config: Settings: what :func:`stage_config` returned, or values by name over those of the recipe.
        recipe: Name or path of a recipe; not beside settings that are complete already.
        data: Folder of data sets; None is ``$WEAKSAM_DATA``, else ``data``.
        inputs: Files to read instead of those of the run folder, by the name of the input.
        limit: Take only the first images, in id order.
        resume: Continue what an earlier run with the same settings left; returns at once where it has finished.
        overwrite: Replace what the stage wrote before. With ``resume``: unless that can be continued.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        seed: Seed of everything random.
        workers: Processes for work per image; more than 0 need a program that keeps its own work under
            ``if __name__ == "__main__"``.
        max_failures: Images that may fail: a count, or a percentage such as ``5%``.

    Raises:
        WeakSamError: the subclass says what: settings, inputs, an output that exists, the machine, failed images.
    """
    from stages.core.registry import load_stage
    from stages.core.runtime.device import torch_threads_restored
    from stages.core.runtime.execute import execute
    from stages.core.runtime.request import Request

    settings = _complete(stage, config, recipe)
    request = Request(
        split=split,
        run=Path(run),
        data=catalog.data_root(None if data is None else Path(data)),
        overrides={name: Path(path) for name, path in (inputs or {}).items()},
        limit=limit,
        resume=resume,
        overwrite=overwrite,
        device=device,
        precision=precision,
        seed=seed,
        workers=workers,
        max_failures=max_failures,
        verbosity=None,
        show_progress=False,
    )
    with torch_threads_restored():
        outcome = execute(load_stage(stage), settings, request)
    return StageResult.of_folder(outcome.out)


def _complete(stage: str, config: StageConfig | Mapping[str, Any] | None, recipe: str | None) -> StageConfig:
    """Return the settings to run with.

    Raises:
        UsageError: no such stage.
        ConfigError: settings of another stage, a recipe beside complete settings, or values that do not work.
    """
    _check_stage(stage)
    if not isinstance(config, StageConfig):
        return stage_config(stage, config, recipe)
    if not isinstance(config, config_class(stage)):
        raise ConfigError(f"these are settings of {config.stage()}, not of {stage}", where="config")
    if recipe is not None:
        raise ConfigError(
            "a recipe cannot complete settings that are complete",
            where="recipe",
            hint="give it to stage_config, or give config as a mapping",
        )
    return config


def _check_stage(stage: str) -> None:
    if stage not in CHAIN:
        raise UsageError(f"there is no stage '{stage}'", hint=did_you_mean(stage, CHAIN))
