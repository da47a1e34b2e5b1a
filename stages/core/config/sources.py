"""Where values come from: recipes, files, the environment and ``--set``, each read into a section per stage.

Recipes and config files are YAML with one section per stage, so that one file describes a whole chain; unknown
sections are errors with close matches. A recipe may say ``base: NAME`` and then states only what differs from that
recipe, and ``precision: fp32`` for all its stages. Values stay the text that was written: what it means is decided by
the setting's type (``values``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from stages.core.errors import ConfigError, did_you_mean
from stages.core.registry import CHAIN
from stages.core.text_files import parse_yaml, read_text

ENV_PREFIX = "WEAKSAM_"

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

Section = dict[str, Any]


@dataclass(frozen=True)
class _Recipe:
    """One file of a recipe and those it is based on."""

    name: str
    sections: dict[str, Section]
    precision: str | None


class _TextLoader(yaml.SafeLoader):
    """YAML whose scalars all stay text: ``off`` is a word, ``0123`` keeps its zero; ``<<`` still merges."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the base class
        start: [(tag, rule) for tag, rule in resolvers if tag == "tag:yaml.org,2002:merge"]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes shipped in the package, sorted."""
    folder = resources.files("stages") / "recipes"
    return tuple(sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")))


def load_recipe(name_or_path: str) -> dict[str, Section]:
    """Read a recipe by shipped name or by path, with what it inherits from its ``base``.

    Raises:
        ConfigError: unknown recipe, section or malformed YAML; recipes that are based on one another in a circle.
        MissingInputError: no such file.
    """
    sections: dict[str, Section] = {}
    for _, layer in recipe_layers(name_or_path):
        sections = merged(sections, layer)
    return sections


def recipe_layers(name_or_path: str) -> list[tuple[str, dict[str, Section]]]:
    """Read a recipe and those it is based on, lowest first, each with the name that messages give it.

    Raises:
        ConfigError, MissingInputError: as :func:`load_recipe`.
    """
    return [(recipe.name, recipe.sections) for recipe in _inherited(name_or_path, ())]


def recipe_precision(name_or_path: str) -> str:
    """Return the precision that a recipe, or one that it is based on, asks for; ``auto`` if none does.

    Raises:
        ConfigError, MissingInputError: as :func:`load_recipe`.
    """
    said = [recipe.precision for recipe in _inherited(name_or_path, ()) if recipe.precision is not None]
    return said[-1] if said else "auto"


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another, group by group."""
    both = dict(lower)
    for name, value in upper.items():
        below = both.get(name)
        both[name] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def _inherited(name_or_path: str, descendants: tuple[str, ...]) -> list[_Recipe]:
    is_path = name_or_path.endswith((".yaml", ".yml"))
    if is_path:
        name_or_path = os.path.normpath(name_or_path)
    if name_or_path in descendants:
        circle = " -> ".join((*descendants, name_or_path))
        raise ConfigError(f"recipes are based on one another in a circle: {circle}", where="--recipe")
    if not is_path and name_or_path not in recipe_names():
        raise ConfigError(
            f"no recipe is called '{name_or_path}'",
            where=f"base of {descendants[-1]}" if descendants else "--recipe",
            hint=did_you_mean(name_or_path, recipe_names()),
        )
    if is_path:
        text, where = read_text(Path(name_or_path), kind=ConfigError), name_or_path
    else:
        shipped = resources.files("stages") / "recipes" / f"{name_or_path}.yaml"
        text, where = shipped.read_text(encoding="utf-8"), f"recipe {name_or_path}"
    content = _parse_mapping(text, where)
    base, precision = content.pop("base", None), content.pop("precision", None)
    if precision not in (None, *PRECISIONS):
        raise ConfigError(
            f"'{precision}' is not a precision",
            where=f"precision of {where}",
            hint=f"use one of {', '.join(PRECISIONS)}",
        )
    layer = _Recipe(f"recipe {name_or_path}", _checked_sections(content, where), precision)
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise ConfigError("base must be the name or the path of one recipe", where=where)
    if is_path and base.endswith((".yaml", ".yml")):
        base = str(Path(name_or_path).parent / base)  # beside the recipe that names it
    return [*_inherited(base, (*descendants, name_or_path)), layer]


def load_config_file(path: Path) -> dict[str, Section]:
    """Read a YAML file of stage sections.

    Raises:
        MissingInputError: no such file.
        ConfigError: not YAML, not a mapping of sections, or an unknown section.
    """
    return _checked_sections(_parse_mapping(read_text(path, kind=ConfigError), str(path)), str(path))


def _parse_mapping(text: str, where: str) -> dict[str, Any]:
    loaded = parse_yaml(text, where, kind=ConfigError, loader=_TextLoader)
    if loaded in (None, ""):
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError("expected a mapping with one section per stage", where=where)
    _check_keys(loaded, where)
    return loaded


def _check_keys(mapping: Mapping[Any, Any], where: str) -> None:
    """Refuse names of settings that are lists or mappings."""
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise ConfigError(f"'{key}' is no name of a setting", where=where)
        if isinstance(value, dict):
            _check_keys(value, where)


def _checked_sections(content: dict[str, Any], where: str) -> dict[str, Section]:
    sections: dict[str, Section] = {}
    for name, section in content.items():
        if name not in CHAIN:
            raise ConfigError(f"unknown section '{name}'", where=where, hint=did_you_mean(str(name), CHAIN))
        if section == "":  # a heading with nothing below it
            section = {}
        if not isinstance(section, dict):
            raise ConfigError(f"section '{name}' must be a mapping of settings", where=where)
        sections[name] = section
    return sections


def environment_section(stage: str, environ: Mapping[str, str] | None = None) -> Section:
    """Settings of ``stage`` from variables named ``WEAKSAM_<STAGE>__<KEY>``; ``__`` is also the dot of a group.

    Raises:
        ConfigError: a variable of that form that names no stage.
    """
    environ = os.environ if environ is None else environ
    section: Section = {}
    for name, text in sorted(environ.items()):
        owner, separator, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if not name.startswith(ENV_PREFIX) or not separator:
            continue
        if owner not in CHAIN:
            raise ConfigError(f"unknown stage '{owner}'", where=name, hint=did_you_mean(owner, CHAIN))
        if owner == stage:
            section = merged(section, nested(key.split("__"), text))
    return section


def parse_assignments(assignments: Iterable[str], stage: str) -> Section:
    """Turn ``--set key=value`` (or ``stage.key=value``, ``group.key=value``) into a section.

    Assignments of other stages are skipped, so that one list serves a whole chain.

    Raises:
        ConfigError: no ``=``, or no key before it.
    """
    section: Section = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = key.strip().replace("-", "_").split(".")
        if not equals or not all(path):
            raise ConfigError(f"expected KEY=VALUE, got '{assignment}'", where="--set")
        if path[0] in CHAIN and len(path) > 1:
            if path[0] != stage:
                continue
            path = path[1:]
        section = merged(section, nested(path, text))
    return section


def nested(path: Iterable[str], value: Any) -> Section:
    """A section with one value: ``("detr", "num_queries")`` is ``{"detr": {"num_queries": value}}``."""
    for name in reversed(list(path)):
        value = {name: value}
    return dict(value)
