"""A stage's settings as flags, made from its settings class; a flag passes on the text that was typed.

The settings class reads the text, so that a flag, a YAML key and ``--set`` mean the same and fail alike. In the help
the settings that matter most come first, the others in the groups of the settings class.
"""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from weaksam_cli import completion

CONDITION = " | "
"""In the heading of a group of settings: what follows says with which choice they exist."""

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from stages.core.config import Settings, StageConfig

MAIN_PANEL = "Settings that matter most (also YAML keys and --set)"
TYPES = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH", bool: "CHOICE"}

SettingName = tuple[str, ...]


def main_parameters(model: type[StageConfig]) -> list[inspect.Parameter]:
    """Flags of the settings that matter most, in the order in which the class lists them."""
    from stages.core.config.model import setting_fields

    fields = dict(setting_fields(model))
    return [_parameter(name, fields[name], MAIN_PANEL) for name in _main(model)]


def other_parameters(model: type[StageConfig]) -> list[inspect.Parameter]:
    """Flags of all other settings, group by group."""
    from stages.core.config.model import setting_fields

    main = _main(model)
    groups: dict[str, list[tuple[SettingName, FieldInfo]]] = {}
    for name, field in setting_fields(model):
        if name not in main:
            groups.setdefault(panel_title(model, name), []).append((name, field))
    return [_parameter(name, field, title) for title, group in groups.items() for name, field in group]


def given_settings(model: type[StageConfig], values: dict[str, Any]) -> dict[str, Any]:
    """The settings given as flags, as they were typed."""
    from stages.core.config.model import setting_fields
    from stages.core.config.sources import merged, nested

    flags: dict[str, Any] = {}
    for name, _ in setting_fields(model):
        value = values.get(_python_name(name))
        if value is not None:
            flags = merged(flags, nested(name, value))
    return flags


def panel_title(model: type[Settings], name: SettingName) -> str:
    """Heading of a setting in the help: its group with the choice it belongs to, or the class that declares it."""
    from stages.core.config.model import group_of

    if len(name) > 1:
        group = model.model_fields[name[0]]
        owner = group_of(group)
        assert owner is not None
        return (group.description or _first_sentence(owner)) + _conditions(group, CONDITION)
    declaring = [owner for owner in model.__mro__ if name[0] in inspect.get_annotations(owner)]
    owner = declaring[-1]
    return _heading(model, name[0]) if owner is model else _first_sentence(owner)


def _conditions(field: FieldInfo, before: str = "") -> str:
    """With which choices a setting or a group exists; empty if with all."""
    from stages.core.config import OnlyWith

    found = " and ".join(str(mark) for mark in field.metadata if isinstance(mark, OnlyWith))
    return f"{before}only with {found}" if found else ""


def _heading(model: type[Settings], name: str) -> str:
    """Heading of a setting that the stage itself declares: the one above it, else a general one."""
    headings, current = getattr(model, "headings", {}), "Other settings"
    for declared in inspect.get_annotations(model):
        current = headings.get(declared, current)
        if declared == name:
            break
    return current


def _first_sentence(owner: type) -> str:
    return (inspect.getdoc(owner) or owner.__name__).split("\n\n")[0].replace("\n", " ").rstrip(".")


def _main(model: type[StageConfig]) -> list[SettingName]:
    return [tuple(name.split(".")) for name in model.main_settings]


def _python_name(name: SettingName) -> str:
    return "__".join(("setting", *name))


def _parameter(name: SettingName, field: FieldInfo, panel: str) -> inspect.Parameter:
    from stages.core.config.values import choices

    flag = ".".join(name).replace("_", "-")
    extra: dict[str, Any] = {"help": _help(field), "rich_help_panel": panel, "show_default": False}
    kind: Any = str | None
    if field.annotation is bool:
        group, dot, last = flag.rpartition(".")
        flags, kind = f"--{flag}/--{group}{dot}no-{last}", bool | None
    else:
        flags = f"--{flag}"
        extra["metavar"] = notation(field.annotation)
        extra["autocompletion"] = completion.of_setting(flag, choices(field.annotation))
    option = typer.Option(None, flags, **extra)
    return inspect.Parameter(
        _python_name(name), inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind
    )


def _help(field: FieldInfo) -> str:
    from stages.core.config.values import choices, format_value, item_range, range_words

    default = field.get_default(call_default_factory=True)
    shown = format_value(default) or "empty"
    if field.annotation is bool:
        shown = "on" if default else "off"
    words = choices(field.annotation)
    limits = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)
    limits = limits or range_words(field.metadata).removeprefix("in ")
    if not limits and (each := item_range(field.annotation)):
        limits = f"each {each.removeprefix('in ')}"
    facts = [fact for fact in (_conditions(field), limits, f"default: {shown}") if fact]
    return f"{field.description} ({'; '.join(facts)})"


def notation(annotation: Any) -> str:
    """How the help writes a type: ``INTEGER``, ``CHOICE``, ``NUMBER,...``."""
    from stages.core.config.values import is_list, item_type, optional_type

    bare = optional_type(annotation)[0]
    if is_list(bare):
        return f"{notation(item_type(bare, 0))},..."
    if typing.get_origin(bare) is Literal:
        return "CHOICE"
    if typing.get_origin(bare) is typing.Union:
        return notation(typing.get_args(bare)[0])
    return TYPES.get(bare, "VALUE")
