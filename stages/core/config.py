"""Settings: one strict, frozen pydantic model per stage and the order in which its values are found.

Precedence, lowest first: default < recipe < ``--config`` file < ``WEAKSAM_<STAGE>__<KEY>`` < ``--set``
< flag. Recipes and config files are YAML with one section per stage, so that one file describes a
whole chain; unknown sections and keys are errors with close matches. A recipe may say ``base: NAME`` and then
states only what differs from that recipe.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.core.errors import ConfigError, MissingInputError, did_you_mean

STAGE_NAMES = ("cam", "prompt", "propose", "wsod", "pgt", "retrain", "wsis")
ENV_PREFIX = "WEAKSAM_"

Section = dict[str, Any]
ConfigT = TypeVar("ConfigT", bound="StageConfig")


class StageConfig(BaseModel):
    """Base of every stage's settings: immutable, no unknown keys, every field described."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


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
    return _inherited(name_or_path, ())


def _inherited(name_or_path: str, descendants: tuple[str, ...]) -> dict[str, Section]:
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
            remedy=did_you_mean(name_or_path, recipe_names()),
        )
    if is_path:
        text, where = _read_text(Path(name_or_path)), name_or_path
    else:
        shipped = resources.files("stages") / "recipes" / f"{name_or_path}.yaml"
        text, where = shipped.read_text(encoding="utf-8"), f"recipe {name_or_path}"
    content = _parse_mapping(text, where)
    base = content.pop("base", None)
    own = _checked_sections(content, where)
    if base is None:
        return own
    if not isinstance(base, str):
        raise ConfigError("base must be the name or the path of one recipe", where=where)
    if is_path and base.endswith((".yaml", ".yml")):
        base = str(Path(name_or_path).parent / base)  # beside the recipe that names it
    inherited = _inherited(base, (*descendants, name_or_path))
    return {stage: {**inherited.get(stage, {}), **own.get(stage, {})} for stage in {**inherited, **own}}


def load_config_file(path: Path) -> dict[str, Section]:
    """Read a YAML file of stage sections.

    Raises:
        MissingInputError: no such file.
        ConfigError: not YAML, not a mapping of sections, or an unknown section.
    """
    return _checked_sections(_parse_mapping(_read_text(path), str(path)), str(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingInputError(
            f"the config file cannot be read ({error.strerror})",
            where=path,
            remedy="give an existing YAML file",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError("the config file is not UTF-8 text", where=path) from error


def _parse_mapping(text: str, where: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", where=where) from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError("expected a mapping with one section per stage", where=where)
    return loaded


def _checked_sections(content: dict[str, Any], where: str) -> dict[str, Section]:
    for name, section in content.items():
        if name not in STAGE_NAMES:
            raise ConfigError(
                f"unknown section '{name}'", where=where, remedy=did_you_mean(str(name), STAGE_NAMES)
            )
        if not isinstance(section, dict):
            raise ConfigError(f"section '{name}' must be a mapping of settings", where=where)
    return content


def environment_section(stage: str, environ: Mapping[str, str] | None = None) -> Section:
    """Settings of ``stage`` from variables named ``WEAKSAM_<STAGE>__<KEY>``; values are read as YAML."""
    environ = os.environ if environ is None else environ
    prefix = f"{ENV_PREFIX}{stage.upper()}__"
    return {
        name[len(prefix) :].lower(): _yaml_value(text, name)
        for name, text in sorted(environ.items())
        if name.startswith(prefix)
    }


def parse_assignments(assignments: Iterable[str], stage: str) -> Section:
    """Turn ``--set key=value`` (or ``stage.key=value``) into a section; values are read as YAML.

    Assignments of other stages are passed over, so that one list serves a whole chain.

    Raises:
        ConfigError: no ``=``, or an unknown stage before the dot.
    """
    section: Section = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"expected KEY=VALUE, got '{assignment}'", where="--set")
        owner, dot, name = key.strip().rpartition(".")
        if dot and owner not in STAGE_NAMES:
            raise ConfigError(
                f"unknown stage '{owner}'", where="--set", remedy=did_you_mean(owner, STAGE_NAMES)
            )
        if not dot or owner == stage:
            section[name.replace("-", "_")] = _yaml_value(text, "--set " + key)
    return section


def _yaml_value(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{text}' is not a YAML value", where=where) from error


def build_config(model: type[ConfigT], layers: Iterable[tuple[str, Section]]) -> ConfigT:
    """Merge layers of settings, lowest precedence first, and validate the result.

    Args:
        model: The stage's settings class.
        layers: Pairs of a source name for messages (``recipe shapes``, ``--set``) and its values.

    Raises:
        ConfigError: unknown key (with close matches), wrong type, value out of range; the message
            names the key and the layer it came from.
    """
    merged: Section = {}
    source: dict[str, str] = {}
    for layer, section in layers:
        for key, value in section.items():
            if key not in model.model_fields:
                raise ConfigError(
                    f"unknown setting '{key}'", where=layer, remedy=did_you_mean(key, model.model_fields)
                )
            merged[key], source[key] = value, layer
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(settings)"
            origin = source.get(key.split(".")[0], "defaults")
            lines.append(f"'{key}' from {origin}: {problem['msg']}, got {problem.get('input')!r}")
        raise ConfigError("; ".join(lines), where=model.__name__) from error
