"""Merge layers of settings and validate them; what is wrong is said in words of the command line, all at once."""

from __future__ import annotations

import difflib
import shlex
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from stages.core.config.model import (
    OnlyWith,
    Settings,
    StageConfig,
    applies,
    choice,
    group_of,
    marks,
    setting_fields,
)
from stages.core.config.renamed import RENAMED
from stages.core.config.sources import Section, merged, nested
from stages.core.config.values import choices, format_value, is_list, type_words
from stages.core.errors import ConfigError, did_you_mean
from stages.core.registry import CHAIN

FLAGS = "the command line"
ASSIGNMENTS = "--set"
ENVIRONMENT = "the environment"
"""Names of layers whose messages say how to write a value there; any other layer is a file or a recipe."""

ConfigT = TypeVar("ConfigT", bound=StageConfig)
Names = tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the settings."""

    where: str
    what: str
    hint: str | None = None


def build_config(model: type[ConfigT], layers: Iterable[tuple[str, Section]]) -> ConfigT:
    """Merge layers of settings, lowest precedence first, and validate the result.

    Groups are merged setting by setting. A layer that changes a choice (``architecture``) thereby also lets go of
    what lower layers said about the groups of the other choices; what it says about them itself is an error.

    Args:
        model: The stage's settings class.
        layers: Pairs of a source name for messages (``recipe shapes``, ``--set``) and its values: text or typed.

    Raises:
        ConfigError: unknown or renamed settings, wrong types, values out of range, settings of a choice that was
            not made; the message names every one of them and the layer it came from.
    """
    problems: list[Problem] = []
    values: Section = {}
    origins: dict[Names, tuple[int, str]] = {}
    for rank, (layer, section) in enumerate(layers):
        for path, value in _leaves(model, section):
            problem = _unknown(model, path, layer)
            if problem is not None:
                problems.append(problem)
                continue
            values = merged(values, nested(path, value))
            origins[path] = (rank, layer)
    values = _without_abandoned(model, values, origins, problems)
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        problems += [_explained(model, detail, values, origins) for detail in error.errors()]
    if problems:
        raise _as_error(model, list(dict.fromkeys(problems)))
    return config


def spelled(path: Names, layer: str, value: str, stage: str) -> str:
    """How a setting is written in a layer: as a flag, a variable, an assignment or a line of YAML."""
    name = ".".join(path)
    if layer == FLAGS:
        return f"--{name.replace('_', '-')} {shlex.quote(value)}"
    if layer == ASSIGNMENTS:
        return f"--set {shlex.quote(f'{name}={value}')}"
    if layer == ENVIRONMENT:
        return f"{variable(path, stage)}={shlex.quote(value)}"
    return f"{name}: {value}" if len(path) == 1 else f"{path[0]}: {{{': '.join(path[1:])}: {value}}}"


def variable(path: Names, stage: str) -> str:
    """Name of the environment variable of a setting."""
    return "__".join((f"WEAKSAM_{stage.upper()}", *(part.upper() for part in path)))


def renamed_to(stage: str, name: str) -> str | None:
    """What a setting that was called ``name`` is called now, with a remark where its meaning changed."""
    new = RENAMED.get(stage, {}).get(name)
    if new is None:
        return None
    new, _, remark = new.partition(":")
    return f"renamed to '{new.strip()}'" + (f", {remark.strip()}" if remark else "")


def _leaves(
    model: type[Settings], section: Mapping[str, Any], prefix: Names = ()
) -> Iterator[tuple[Names, Any]]:
    """Paths and values of single settings; mappings are followed wherever no setting has a mapping for a value."""
    for name, value in section.items():
        path = (*prefix, str(name))
        field = _field(model, path)
        is_group = field is not None and group_of(field) is not None
        if isinstance(value, Mapping) and (value or is_group) and (field is None or not _is_mapping(field)):
            yield from _leaves(model, value, path)
        else:
            yield path, value


def _is_mapping(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) in (dict, Mapping)


def _field(model: type[Settings], path: Names) -> FieldInfo | None:
    field: FieldInfo | None = None
    owner: type[Settings] | None = model
    for name in path:
        field = None if owner is None else owner.model_fields.get(name)
        if field is None:
            return None
        owner = group_of(field)
    return field


def _unknown(model: type[StageConfig], path: Names, layer: str) -> Problem | None:
    if _field(model, path) is not None:
        return None
    name = ".".join(path)
    where = f"'{name}' from {layer}"
    new = renamed_to(model.stage(), name)
    if new is not None:
        return Problem(where, new)
    parent = _field(model, path[:-1]) if len(path) > 1 else None
    if parent is not None and group_of(parent) is None:
        return Problem(where, f"'{'.'.join(path[:-1])}' is a single setting: {type_words(parent)}")
    if len(path) > 1 and parent is None and path[0] not in model.model_fields:
        stage = difflib.get_close_matches(path[0], CHAIN, n=1)
        if stage:
            return Problem(where, "unknown setting", f"did you mean '{'.'.join((*stage, *path[1:]))}'?")
    return Problem(where, "unknown setting", _close(name, [".".join(p) for p, _ in setting_fields(model)]))


def _close(name: str, known: list[str]) -> str:
    """Close matches of a dotted name, first among whole names, then among last parts."""
    if difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return did_you_mean(name, known)
    last = [full for full in known if full.rpartition(".")[2] == name.rpartition(".")[2]]
    if last:
        return "did you mean " + ", ".join(f"'{full}'" for full in last[:3]) + "?"
    return did_you_mean(name, known)


def _without_abandoned(
    model: type[Settings],
    values: Section,
    origins: dict[Names, tuple[int, str]],
    problems: list[Problem],
    prefix: Names = (),
) -> Section:
    """Drop the settings of choices that a higher layer has unmade; those said beside the choice are problems."""
    kept = dict(values)
    for name, mark in marks(model):
        if name not in kept or applies(model, mark, values):
            continue
        chosen_at, chosen_by = origins.get((*prefix, mark.setting), (-1, "default"))
        inside = {path: at for path, at in origins.items() if path[: len(prefix) + 1] == (*prefix, name)}
        for path, (rank, layer) in inside.items():
            if rank >= chosen_at:
                problems.append(_misplaced(model, mark, values, path, layer, chosen_by))
        del kept[name]
    for name, value in kept.items():
        field = model.model_fields.get(name)
        group = None if field is None else group_of(field)
        if group is not None and isinstance(value, dict):
            kept[name] = _without_abandoned(group, value, origins, problems, (*prefix, name))
    return kept


def _misplaced(
    model: type[Settings], mark: OnlyWith, values: Section, path: Names, layer: str, chosen_by: str
) -> Problem:
    chosen = format_value(choice(model, mark, values))
    where = f"'{'.'.join(path)}' from {layer}"
    what = f"belongs to {mark}, but {mark.setting} is {chosen} (from {chosen_by})"
    return Problem(where, what, f"set {mark.setting} to {format_value(mark.values[0])}, or leave this out")


def _explained(
    model: type[StageConfig], detail: ErrorDetails, values: Section, origins: dict[Names, tuple[int, str]]
) -> Problem:
    """One of pydantic's findings in our words: expected type and range, what was given, how to write it."""
    path, field = _located(model, detail["loc"])
    if not path or field is None:
        return Problem(model.stage(), _own_words(detail))
    _, layer = max((at for name, at in origins.items() if name[: len(path)] == path), default=(-1, "default"))
    where = f"'{'.'.join(path)}' from {layer}"
    if detail["type"] == "missing":
        return Problem(f"'{'.'.join(path)}'", f"is missing: {type_words(field)}")
    if detail["type"] in ("value_error", "assertion_error"):
        return Problem(where, _own_words(detail))
    given = values
    for name in path:
        given = given.get(name, {}) if isinstance(given, Mapping) else {}
    shown = format_value(given)
    expected = f"expected {type_words(field)}, got {_quoted(shown)}"
    return Problem(where, expected, _how_to_write(path, field, layer, detail["input"], model.stage()))


def _located(model: type[Settings], loc: tuple[int | str, ...]) -> tuple[Names, FieldInfo | None]:
    """The setting that an error of pydantic concerns: the longest path of names that exist."""
    path: Names = ()
    field: FieldInfo | None = None
    for part in loc:
        deeper = _field(model, (*path, str(part)))
        if deeper is None:
            break
        path, field = (*path, str(part)), deeper
    return path, field


def _how_to_write(path: Names, field: FieldInfo, layer: str, wrong: Any, stage: str) -> str | None:
    group = group_of(field)
    if group is not None:
        inside, field = next(setting_fields(group))
        path = (*path, *inside)
    elif options := choices(field.annotation):
        close = difflib.get_close_matches(format_value(wrong), options, n=1, cutoff=0.6)
        return f"did you mean '{close[0]}'?" if close else None
    example = format_value(field.get_default(call_default_factory=True))
    if example in ("none", "[]", ""):
        example = "1,2" if is_list(field.annotation) else ""
    return f"write for example {spelled(path, layer, example, stage)}" if example else None


def _own_words(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _as_error(model: type[StageConfig], problems: list[Problem]) -> ConfigError:
    if len(problems) == 1:
        only = problems[0]
        where = only.where if only.where == model.stage() else f"{model.stage()}: {only.where}"
        return ConfigError(only.what, where=where, hint=only.hint)
    lines = [f"{len(problems)} settings are wrong"]
    for problem in problems:
        lines.append(f"  {problem.where}: {problem.what}" + (f" ({problem.hint})" if problem.hint else ""))
    return ConfigError("\n".join(lines), where=model.stage())


def _quoted(text: str) -> str:
    return "nothing" if text == "" else f"'{text}'"
