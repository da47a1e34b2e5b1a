"""A subcommand per stage, its flags made from the stage's settings class.

The body is three lines: build the settings, build the request, execute. Settings flags pass on the text that was
typed; the settings class reads it, so that a flag, a YAML key and ``--set`` mean the same and fail alike.
"""

from __future__ import annotations

import importlib
import inspect
import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from stages.core.registry import load_stage, stage_spec
from weaksam_cli.state import OPTIONS, data_root, run_folder

if TYPE_CHECKING:
    from stages.core.config import StageConfig
    from stages.core.runtime.execute import Outcome
    from stages.core.runtime.request import Request
    from stages.core.spec import StageSpec

SETTINGS_PANEL = "Settings (also YAML keys and --set)"
RUN_PANEL = "Run"


def stage_command(stage: str) -> Callable[..., None]:
    """Build the function that Typer turns into ``weaksam <stage>``."""
    from stages.core.config import config_class

    spec, model = stage_spec(stage), config_class(stage)

    def command(**values: Any) -> None:
        config, request = prepare(spec, model, values)
        from stages.core.runtime.execute import execute
        from stages.core.runtime.processes import is_main

        if request.dry_run and not values["as_json"]:
            _print_settings(config)  # before anything that may be missing
        outcome = execute(load_stage(stage), config, request)
        if not is_main():
            return
        if values["viz"] and outcome.status in ("done", "already done"):
            _draw(stage, outcome, request, values["viz"])
        _print_outcome(stage, outcome, config, as_json=values["as_json"])

    parameters = [*_common_parameters(), *_input_parameters(spec), *_setting_parameters(model)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = spec.summary
    command.__name__ = stage
    return command


def prepare(spec: StageSpec, model: type[StageConfig], values: dict[str, Any]) -> tuple[StageConfig, Request]:
    """Build settings and request from parsed options.

    Raises:
        ConfigError, UsageError: see :func:`stages.core.config.build_config` and the option parsers.
    """
    from stages.core.runtime.parts import parse_shard
    from stages.core.runtime.request import Request

    config = resolve_settings(
        spec.name,
        model,
        values["recipe"],
        values["config"],
        values["assignments"],
        setting_flags(model, values),
    )
    request = Request(
        split=values["split"],
        run=run_folder(values["run"], values["split"].rpartition("_")[0] or values["split"]),
        data=data_root(values["data"]),
        out=values["out"],
        overrides={i.name: values[f"input_{i.name}"] for i in spec.inputs if values[f"input_{i.name}"]},
        limit=values["limit"],
        shard=parse_shard(values["shard"]),
        resume=values["resume"],
        overwrite=values["overwrite"],
        save_every=values["save_every"],
        log_every=values["log_every"],
        dry_run=values["dry_run"],
        device=values["device"],
        precision=values["precision"],
        seed=values["seed"],
        workers=values["workers"],
        max_failures=values["max_failures"],
        verbosity=OPTIONS.verbosity,
        show_progress=OPTIONS.progress,
    )
    return config, request


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


def setting_flags(model: type[StageConfig], values: dict[str, Any]) -> dict[str, Any]:
    """The settings given as flags, as they were typed."""
    from stages.core.config.model import setting_fields
    from stages.core.config.sources import merged, nested

    flags: dict[str, Any] = {}
    for path, _ in setting_fields(model):
        value = values.get(_parameter_name(path))
        if value is not None:
            flags = merged(flags, nested(path, value))
    return flags


def _parameter_name(path: tuple[str, ...]) -> str:
    return "__".join(("setting", *path))


def _is_sequence(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (tuple, list)


def _option(name: str, kind: Any, default: Any, *flags: str, **extra: Any) -> inspect.Parameter:
    option = typer.Option(default, *flags, **extra)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


def _common_parameters() -> list[inspect.Parameter]:
    panel = {"rich_help_panel": RUN_PANEL}
    path = Path | None
    return [
        _option(
            "split", str, ..., "--split", help="Split to work on, <dataset>_<subset>.", envvar="WEAKSAM_SPLIT"
        ),
        _option("run", path, None, "--run", help="Run folder; default runs/<dataset>.", **panel),
        _option("out", path, None, "--out", help="Output folder; default <run>/<stage>/<split>.", **panel),
        _option(
            "config", path, None, "--config", "-c", help="YAML file with one section per stage.", **panel
        ),
        _option(
            "recipe",
            str | None,
            None,
            "--recipe",
            help="Shipped recipe, or a path to one.",
            envvar="WEAKSAM_RECIPE",
            **panel,
        ),
        _option(
            "assignments",
            list[str],
            [],
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="One setting; may be repeated.",
            **panel,
        ),
        _option(
            "data",
            path,
            None,
            "--data",
            help="Folder of data sets; default $WEAKSAM_DATA, else ./data.",
            **panel,
        ),
        _option(
            "limit", int | None, None, "--limit", help="Take only the first N images in id order.", **panel
        ),
        _option("shard", str, "0/1", "--shard", metavar="I/N", help="Take part I of N (0-based).", **panel),
        _option(
            "resume",
            bool,
            False,
            "--resume",
            help="Go on from saved state; nothing to do if finished.",
            **panel,
        ),
        _option(
            "overwrite", bool, False, "--overwrite", help="Replace what this stage wrote before.", **panel
        ),
        _option(
            "save_every",
            float,
            120.0,
            "--save-every",
            min=0.0,
            metavar="SECONDS",
            help="Time between saved states of a training; 0 saves every step.",
            **panel,
        ),
        _option(
            "log_every",
            int,
            20,
            "--log-every",
            min=1,
            metavar="STEPS",
            help="Training steps between lines of metrics.jsonl.",
            **panel,
        ),
        _option(
            "dry_run", bool, False, "--dry-run", help="Check everything, print settings, do nothing.", **panel
        ),
        _option(
            "device",
            str,
            "auto",
            "--device",
            help="auto, cpu, cuda or cuda:N.",
            envvar="WEAKSAM_DEVICE",
            **panel,
        ),
        _option("precision", str, "auto", "--precision", help="auto, fp32, bf16 or fp16.", **panel),
        _option(
            "workers",
            int | None,
            None,
            "--workers",
            min=0,
            help="Processes for per-image work; default all cores on a CPU.",
            **panel,
        ),
        _option(
            "seed", int, 0, "--seed", min=0, help="Seed of everything random.", envvar="WEAKSAM_SEED", **panel
        ),
        _option(
            "max_failures",
            str,
            "5%",
            "--max-failures",
            help="Images that may fail: a count or a percentage.",
            **panel,
        ),
        _option(
            "viz",
            int,
            0,
            "--viz",
            min=0,
            metavar="N",
            help="Draw the first N images into <out>/viz.",
            **panel,
        ),
        _option("as_json", bool, False, "--json", help="Print the result as one line of JSON.", **panel),
    ]


def _input_parameters(spec: StageSpec) -> list[inspect.Parameter]:
    return [
        _option(
            f"input_{needed.name}",
            Path | None,
            None,
            f"--{needed.name}",
            metavar="PATH",
            help=f"Use this {needed.name} file instead of the run folder's.",
            rich_help_panel=RUN_PANEL,
        )
        for needed in spec.inputs
    ]


def _setting_parameters(model: type[StageConfig]) -> list[inspect.Parameter]:
    from stages.core.config.model import setting_fields

    parameters = []
    for path, field in setting_fields(model):
        name = _parameter_name(path)
        flag = ".".join(path).replace("_", "-")
        default = field.get_default(call_default_factory=True)
        # Brackets are markup to rich, and ranges are written with brackets.
        text = f"{field.description} (default: {_shown(default)})".replace("[", r"\[")
        shared: dict[str, Any] = {"help": text, "rich_help_panel": SETTINGS_PANEL, "show_default": False}
        if field.annotation is bool:
            group, _, last = flag.rpartition(".")
            no = f"{group}.no-{last}" if group else f"no-{last}"
            parameters.append(_option(name, bool | None, None, f"--{flag}/--{no}", **shared))
        else:
            metavar = _metavar(field.annotation)
            parameters.append(_option(name, str | None, None, f"--{flag}", metavar=metavar, **shared))
    return parameters


def _shown(value: Any) -> str:
    from stages.core.config.values import format_value

    return format_value(value)


def _metavar(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return "|".join(str(v) for v in typing.get_args(annotation))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return "|".join(_metavar(a) for a in typing.get_args(annotation) if a is not type(None))
    if _is_sequence(annotation):
        return "LIST"
    names = {int: "INTEGER", float: "FLOAT", str: "TEXT", Path: "PATH"}
    return names.get(annotation, "VALUE")


def _draw(stage: str, outcome: Outcome, request: Request, count: int) -> None:
    from stages.core.datasets.catalog import open_split

    viz = importlib.import_module(f"stages.{stage}.viz")
    split = open_split(request.split, request.data)
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
    for name, value in config.named_values():
        typer.echo(f"  {name} = {_shown(value)}")


def _print_outcome(stage: str, outcome: Outcome, config: StageConfig, *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        counts = asdict(outcome.manifest)["counts"] if outcome.manifest else {}
        typer.echo(
            json.dumps(
                {
                    "stage": stage,
                    "status": outcome.status,
                    "out": str(outcome.out),
                    "images": outcome.plan.images,
                    "counts": counts,
                    "config": json.loads(config.model_dump_json()),
                }
            )
        )
        return
    typer.echo(f"{stage}: {outcome.status} ({outcome.plan.images} images) -> {outcome.out}")
    for note in outcome.plan.notes:
        typer.echo(f"  {note}")
    if outcome.manifest is not None:
        counts = ", ".join(f"{k} {v}" for k, v in outcome.manifest.counts.items())
        typer.echo(f"  {counts}; {outcome.manifest.wall_seconds:.1f} s")
