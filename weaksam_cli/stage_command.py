"""A subcommand per stage, its flags made from the shared options, the stage's inputs and its settings class.

The body is three lines: build the settings, build the request, execute.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stages.core.registry import load_stage, stage_spec
from weaksam_cli.data_sets import class_names
from weaksam_cli.options import PANEL, Options, as_command, given_options, option_names, parameters
from weaksam_cli.outcomes import print_outcome
from weaksam_cli.setting_flags import given_settings, main_parameters, other_parameters
from weaksam_cli.state import OPTIONS, data_root, run_folder

if TYPE_CHECKING:
    from stages.core.config import StageConfig
    from stages.core.runtime.execute import Outcome
    from stages.core.runtime.request import Request
    from stages.core.spec import Role, StageSpec


def stage_command(stage: str) -> Callable[..., None]:
    """Build the function that Typer turns into ``weaksam <stage>``."""
    from stages.core.config import config_class

    spec, model = stage_spec(stage), config_class(stage)

    def command(**values: Any) -> None:
        options = given_options(values)
        config = resolve_settings(
            stage,
            model,
            options.recipe,
            options.config,
            options.assignments,
            given_settings(model, values),
        )
        request = stage_request(options, given_inputs(spec, values))
        from stages.core.errors import WeakSamError
        from stages.core.runtime.execute import execute
        from stages.core.runtime.processes import is_main

        try:
            outcome = execute(load_stage(stage), config, request)
        except WeakSamError:
            if options.dry_run and not options.as_json:
                _print_settings(config)  # what would be run with is known all the same
            raise
        if not is_main():
            return
        if options.viz and outcome.status in ("done", "already done"):
            _draw(stage, outcome, request, options.viz)
        if options.dry_run and not options.as_json:
            _print_settings(config)
        print_outcome(stage, outcome, config, options, _role(request))

    split, *others = option_names()
    signature = [
        *parameters(split, panel=None),
        *main_parameters(model),
        *parameters(*others),
        *_input_parameters(spec),
        *other_parameters(model),
    ]
    return as_command(command, signature, stage, spec.summary)


def given_inputs(spec: StageSpec, values: dict[str, Any]) -> dict[str, Path]:
    """The inputs given as flags instead of those of the run folder."""
    return {i.name: values[f"input_{i.name}"] for i in spec.inputs if values[f"input_{i.name}"]}


def stage_request(options: Options, overrides: dict[str, Path]) -> Request:
    """What is asked of a stage beside its settings.

    Raises:
        UsageError: a shard that cannot be.
    """
    from stages.core.runtime.parts import parse_shard
    from stages.core.runtime.request import Request

    precision: str = options.precision
    if precision == "auto" and options.recipe:
        from stages.core.config.sources import recipe_precision

        precision = recipe_precision(options.recipe)
    return Request(
        split=options.split,
        run=run_folder(options.run, options.split.rpartition("_")[0] or options.split),
        data=data_root(options.data),
        out=options.out,
        overrides=overrides,
        limit=options.limit,
        classes=class_names(options.classes),
        shard=parse_shard(options.shard),
        resume=options.resume,
        overwrite=options.overwrite,
        save_every=options.save_every,
        log_every=options.log_every,
        dry_run=options.dry_run,
        device=options.device,
        precision=precision,
        deterministic=options.deterministic,
        seed=options.seed,
        workers=options.workers,
        max_failures=options.max_failures,
        verbosity=OPTIONS.verbosity,
        show_progress=OPTIONS.progress,
    )


def resolve_settings(
    stage: str,
    model: type[StageConfig],
    recipe: str | None,
    config_file: Path | None,
    assignments: list[str],
    flags: dict[str, Any],
) -> StageConfig:
    """Settings of one stage: default < recipe < file < environment < ``--set`` < flag."""
    from stages.core.config import build_config, environment_section, load_config_file, parse_assignments
    from stages.core.config.building import ASSIGNMENTS, ENVIRONMENT, FLAGS
    from stages.core.config.sources import recipe_layers

    layers = []
    if recipe:
        layers += [(name, sections.get(stage, {})) for name, sections in recipe_layers(recipe)]
    if config_file:
        layers.append((str(config_file), load_config_file(config_file).get(stage, {})))
    layers.append((ENVIRONMENT, environment_section(stage)))
    layers.append((ASSIGNMENTS, parse_assignments(assignments, stage)))
    layers.append((FLAGS, flags))
    return build_config(model, layers)


def _input_parameters(spec: StageSpec) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            f"input_{needed.name}",
            inspect.Parameter.KEYWORD_ONLY,
            default=typer.Option(
                None,
                f"--{needed.name}",
                help=needed.help or f"Use this {needed.name} file instead of the run folder's.",
                rich_help_panel=PANEL,
            ),
            annotation=Path | None,
        )
        for needed in spec.inputs
    ]


def _role(request: Request) -> Role:
    """Role of the split that a finished run has worked on."""
    from stages.core.datasets.catalog import locate

    return locate(request.split, request.data).role


def _draw(stage: str, outcome: Outcome, request: Request, count: int) -> None:
    from stages.core.datasets.catalog import open_split

    viz = importlib.import_module(f"stages.{stage}.viz")
    split = open_split(request.split, request.data, classes=request.classes)
    failed = {entry["id"] for entry in outcome.manifest.failures} if outcome.manifest else set()
    ids = [i for i in split.ids[:count] if i not in failed and _readable(split.image_path(i))]
    viz.draw(outcome.out, split, ids, outcome.out / "viz")


def _readable(path: Path) -> bool:
    """Whether an image can be drawn on; stages that need its size alone do not notice that it is damaged."""
    from stages.core.datasets.images import load_image
    from stages.core.errors import ImageError

    try:
        load_image(path)
    except ImageError:
        return False
    return True


def _print_settings(config: StageConfig) -> None:
    from stages.core.config.values import format_value

    for name, value in config.named_values():
        typer.echo(f"  {name} = {format_value(value)}")
