"""``weaksam recipes``: the settings that come with the package, what one expands to, and how two differ."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.core.registry import CHAIN
from weaksam_cli import completion
from weaksam_cli.commands import HelpCommand, HelpGroup
from weaksam_cli.options import Options, with_options

RecipeArgument = Annotated[
    str, typer.Argument(help="Name of a shipped recipe, or a YAML file.", autocompletion=completion.recipes)
]


def recipes_app() -> typer.Typer:
    """The commands below ``weaksam recipes``."""
    app = typer.Typer(
        cls=HelpGroup, no_args_is_help=True, help="List, show and compare the settings of whole chains."
    )
    app.command("list", cls=HelpCommand)(list_recipes)
    app.command("show", cls=HelpCommand)(show)
    app.command("diff", cls=HelpCommand)(diff)
    return app


@with_options("as_json", panel=None)
def list_recipes(options: Options) -> None:
    """List the shipped recipes, what they are based on and what they are for."""
    from importlib import resources

    from stages.core.config import recipe_names
    from stages.core.config.sources import recipe_layers

    rows = []
    for name in recipe_names():
        text = (resources.files("stages") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        layers = [layer for layer, _ in recipe_layers(name)]
        rows.append({"name": name, "based_on": layers[:-1], "purpose": _purpose(text)})
    if options.as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        base = f" (on {row['based_on'][-1]})" if row["based_on"] else ""
        typer.echo(f"{row['name']:<12} {row['purpose']}{base}")


def _purpose(text: str) -> str:
    """The first sentence of a recipe's own comment."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in comment).partition(". ")[0].rstrip(".")


@with_options("as_json", panel=None)
def show(
    options: Options,
    recipe: RecipeArgument,
    stage: Annotated[str | None, typer.Argument(help="Only this stage.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All settings, not only those that differ from the defaults.")
    ] = False,
) -> None:
    """Print what a recipe sets, as a YAML file that --config and --recipe take."""
    import yaml

    resolved, defaults = _resolved(recipe), _resolved(None)
    wanted = (_stage(stage),) if stage else CHAIN
    content: dict[str, Any] = {}
    for name in wanted:
        values = {k: v for k, v in resolved[name].items() if every or defaults[name].get(k, _MISSING) != v}
        if values:
            content[name] = values
    if options.as_json:
        typer.echo(json.dumps(content))
    else:
        typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), nl=False)


@with_options("as_json", panel=None)
def diff(options: Options, first: RecipeArgument, second: RecipeArgument) -> None:
    """Print the settings in which two recipes differ, with what each expands to."""
    one, other = _resolved(first), _resolved(second)
    rows = []
    for stage in CHAIN:
        for key in [*one[stage], *(k for k in other[stage] if k not in one[stage])]:
            values = [side[stage].get(key) for side in (one, other)]
            if one[stage].get(key, _MISSING) != other[stage].get(key, _MISSING):
                rows.append({"setting": f"{stage}.{key}", "values": values})
    if options.as_json:
        typer.echo(json.dumps({"recipes": [first, second], "differences": rows}))
        return
    for row in rows:
        left, right = (_written(value) for value in row["values"])
        typer.echo(f"{row['setting']}: {left} -> {right}")
    if not rows:
        typer.echo("no difference")


_MISSING = object()


def _written(value: Any) -> str:
    from stages.core.config.values import format_value

    return format_value(value) or "none"


def _resolved(recipe: str | None) -> dict[str, dict[str, Any]]:
    """Stage -> dotted setting -> value, of the shipped defaults and a recipe alone: no environment counts."""
    from stages.core.config import build_config, config_class
    from stages.core.config.sources import recipe_layers

    layers = recipe_layers(recipe) if recipe is not None else []
    found = {}
    for stage in CHAIN:
        config = build_config(config_class(stage), [(name, part.get(stage, {})) for name, part in layers])
        found[stage] = dict(json.loads(json.dumps(dict(config.named_values()), default=_plain)))
    return found


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else json.loads(value.model_dump_json())


def _stage(name: str) -> str:
    from stages.core.errors import UsageError, did_you_mean

    if name not in CHAIN:
        raise UsageError(f"there is no stage '{name}'", where="STAGE", hint=did_you_mean(name, CHAIN))
    return name
