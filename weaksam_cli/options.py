"""The options that several commands share, declared once: their flags, types, defaults, variables and help.

A stage command takes all of them; other commands name those they have::

    @with_options("run", use("recipe", default="demo"))
    def demo(options: Options) -> None: ...
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from weaksam_cli import completion

PANEL = "Run"

CommandT = typing.TypeVar("CommandT", bound=Callable[..., Any])


@dataclass(frozen=True)
class Shown:
    """How an option looks on the command line.

    Attributes:
        help: What it says, one sentence.
        flags: Its flags; none = its name.
        env: Environment variable that stands in for the flag.
        metavar: How its value is written where that is more than a type.
        low: Least value of a number.
        required: Whether it must be given.
        complete: What a shell offers after it.
    """

    help: str
    flags: tuple[str, ...] = ()
    env: str | None = None
    metavar: str | None = None
    low: float | None = None
    required: bool = False
    complete: Callable[..., list[str]] | None = None


@dataclass(frozen=True)
class Options:
    """What can be asked for beside the settings of a stage; each field is one option of the command line."""

    split: Annotated[
        str,
        Shown(
            "Split to work on, <dataset>_<subset>.",
            env="WEAKSAM_SPLIT",
            required=True,
            complete=completion.splits,
        ),
    ] = ""
    run: Annotated[
        Path | None,
        Shown("Run folder; default runs/<dataset>.", env="WEAKSAM_RUN", complete=completion.runs),
    ] = None
    out: Annotated[Path | None, Shown("Output folder; default <run>/<stage>/<split>.")] = None
    recipe: Annotated[
        str | None,
        Shown(
            "Settings of all stages: a path, or one of {recipes}.",
            env="WEAKSAM_RECIPE",
            complete=completion.recipes,
        ),
    ] = None
    config: Annotated[Path | None, Shown("YAML file with one section per stage.", ("--config", "-c"))] = None
    assignments: Annotated[
        list[str],
        Shown(
            "One setting; may be repeated.",
            ("--set", "-s"),
            metavar="KEY=VALUE",
            complete=completion.assignments,
        ),
    ] = field(default_factory=list)
    data: Annotated[Path | None, Shown("Folder of data sets; default data.", env="WEAKSAM_DATA")] = None
    classes: Annotated[
        str,
        Shown(
            "Restrict the data set to these classes; other objects are then unknown.",
            env="WEAKSAM_CLASSES",
            metavar="NAME,NAME",
        ),
    ] = ""
    limit: Annotated[int | None, Shown("Take only the first N images in id order.", low=1)] = None
    shard: Annotated[str, Shown("Take part I of N, counted from 0.", metavar="I/N")] = "0/1"
    resume: Annotated[bool, Shown("Go on from saved state; nothing to do if finished.")] = False
    overwrite: Annotated[bool, Shown("Replace what was written here before.")] = False
    dry_run: Annotated[bool, Shown("Check everything, print what would be done, do nothing.")] = False
    save_every: Annotated[
        float, Shown("Seconds between saved states of a training; 0 saves every step.", low=0)
    ] = 120.0
    log_every: Annotated[int, Shown("Training steps between lines of metrics.jsonl.", low=1)] = 20
    device: Annotated[
        str,
        Shown("Device: auto, cpu, cuda or cuda:N.", env="WEAKSAM_DEVICE", complete=completion.devices),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Shown("Precision of the networks; auto: the recipe's, else bf16 on a GPU that has it."),
    ] = "auto"
    deterministic: Annotated[
        bool | None,
        Shown("Deterministic algorithms; default on a CPU, not on a GPU, where they are slower."),
    ] = None
    workers: Annotated[
        int | None,
        Shown(
            "Processes for work per image (default all cores where the CPU does it) and for loading training batches.",
            low=0,
        ),
    ] = None
    seed: Annotated[int, Shown("Seed of everything random.", env="WEAKSAM_SEED", low=0)] = 0
    max_failures: Annotated[
        str, Shown("Images that may fail: a count or a percentage.", metavar="COUNT|PERCENT")
    ] = "5%"
    viz: Annotated[int, Shown("Draw the first N images into <out>/viz.", low=0)] = 0
    as_json: Annotated[bool, Shown("Print the result as one line of JSON.", ("--json",))] = False


@dataclass(frozen=True)
class Use:
    """A shared option of one command, with what the command says otherwise about it."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)


def use(name: str, **changes: Any) -> Use:
    """A shared option with another default or other fields of :class:`Shown`."""
    return Use(name, changes)


def option_names() -> tuple[str, ...]:
    """Names of all shared options, in the order of the help."""
    return tuple(entry.name for entry in fields(Options))


def parameters(*wanted: str | Use, panel: str | None = PANEL) -> list[inspect.Parameter]:
    """The shared options that a command has, as parameters that Typer turns into flags."""
    chosen = [item if isinstance(item, Use) else Use(item) for item in wanted]
    return [_parameter(item, panel) for item in chosen]


def given_options(values: dict[str, Any]) -> Options:
    """Take the shared options out of a command's values; those that the command lacks keep their defaults."""
    return Options(**{name: values[name] for name in option_names() if name in values})


def with_options(*wanted: str | Use, panel: str | None = PANEL) -> Callable[[CommandT], Callable[..., Any]]:
    """Give a command shared options; it gets them as one argument, ``options``."""

    def decorate(function: CommandT) -> Callable[..., Any]:
        own = [
            p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "options"
        ]
        shared = parameters(*wanted, panel=panel)
        names = {parameter.name for parameter in own}

        def command(**values: Any) -> Any:
            return function(
                **{name: value for name, value in values.items() if name in names},
                options=given_options({name: value for name, value in values.items() if name not in names}),
            )

        return as_command(command, [*own, *shared], function.__name__, function.__doc__ or "")

    return decorate


def as_command(
    function: Callable[..., Any], parameters: list[inspect.Parameter], name: str, text: str
) -> Callable[..., Any]:
    """Give a function of keyword values the signature that Typer reads."""
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    function.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    function.__doc__ = text
    function.__name__ = name
    return function


@cache
def _declared() -> dict[str, Any]:
    """Name -> annotation of every shared option."""
    return typing.get_type_hints(Options, include_extras=True)


def _parameter(item: Use, panel: str | None) -> inspect.Parameter:
    kind, shown = typing.get_args(_declared()[item.name])
    changes = dict(item.changes)
    required = shown.required and "default" not in changes
    default = changes.pop("default", getattr(Options(), item.name))
    shown = replace(shown, **changes)
    option = typer.Option(
        ... if required else default,
        *(shown.flags or (f"--{item.name.replace('_', '-')}",)),
        help=shown.help,
        envvar=shown.env,
        metavar=shown.metavar,
        min=shown.low,
        autocompletion=shown.complete,
        rich_help_panel=panel,
    )
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)
