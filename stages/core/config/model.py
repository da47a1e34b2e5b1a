"""Base classes of settings: strict, immutable, read by one grammar, and silent about what is not in use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator
from pydantic.fields import FieldInfo

from stages.core.config.values import format_value, optional_type, read_value


@dataclass(frozen=True)
class OnlyWith:
    """Mark of a setting, or of a group of settings, that exists for some values of another setting beside it.

    Written into the annotation: ``detr: Annotated[DetrSettings, OnlyWith("architecture", ("rt-detr",))]``. Under
    any other architecture the group is neither printed nor written into manifests, and setting it is an error.

    Attributes:
        setting: Name of the setting that chooses, in the same model.
        values: Its values with which the marked one exists.
    """

    setting: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        *others, last = (format_value(value) for value in self.values)
        return f"{self.setting} {', '.join(others)} or {last}" if others else f"{self.setting} {last}"


class Settings(BaseModel):
    """Base of every group of settings: immutable, no unknown keys, every field described.

    A field that is itself a :class:`Settings` is a group inside the group: ``detr.num_queries``. What is not
    given of it keeps the values of the field's default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_texts(cls, data: Any) -> Any:
        """Read texts by the types of the fields, and complete groups that are given in part."""
        if not isinstance(data, Mapping):
            return data
        given = {name: _read_field(cls.model_fields.get(name), value) for name, value in data.items()}
        for name, mark in marks(cls):
            if name in given and not applies(cls, mark, given):
                chosen = format_value(choice(cls, mark, given))
                raise ValueError(f"{name} belongs to {mark}, but {mark.setting} is {chosen}")
        return given

    @model_serializer(mode="wrap")
    def _without_inactive(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        hidden = self.inactive()
        return {name: value for name, value in serialize(self).items() if name not in hidden}

    def inactive(self) -> frozenset[str]:
        """Names of the fields that do not exist with the choices made."""
        values = {mark.setting: getattr(self, mark.setting) for _, mark in marks(type(self))}
        return frozenset(name for name, mark in marks(type(self)) if not applies(type(self), mark, values))

    def named_values(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Dotted names and values of all active settings, those of groups one by one."""
        hidden = self.inactive()
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name in hidden:
                continue
            if isinstance(value, Settings):
                yield from value.named_values(f"{prefix}{name}.")
            else:
                yield prefix + name, value

    def weight_files(self, *, trains: bool) -> dict[str, Path]:
        """Return the files and folders of weights that the settings ask for, by the setting's name.

        Those that are not there are among them or not: the plan of the stage says so with a better message. A hub id,
        and a backbone that timm fetches by name, stand in the settings themselves.

        Args:
            trains: Whether the stage trains; one that applies a checkpoint may need none of them.
        """
        return {}


class StageConfig(Settings):
    """Base of every stage's settings.

    Attributes:
        main_settings: Dotted names of the settings that matter most; the help begins with them.
        headings: Of the settings that the stage itself declares, the first below a heading in the help -> the heading.
    """

    main_settings: ClassVar[tuple[str, ...]] = ()
    headings: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def stage(cls) -> str:
        """Name of the stage, from that of the class: ``PgtConfig`` is of ``pgt``."""
        return cls.__name__.removesuffix("Config").lower()


def config_class(stage: str) -> type[StageConfig]:
    """Return the settings class of a stage, found by name; imports no torch."""
    module = importlib.import_module(f"stages.{stage}.config")
    return cast("type[StageConfig]", getattr(module, f"{stage.capitalize()}Config"))


def group_of(field: FieldInfo) -> type[Settings] | None:
    """The class of a field that is a group of settings, else None."""
    bare = optional_type(field.annotation)[0]
    return bare if isinstance(bare, type) and issubclass(bare, Settings) else None


def setting_fields(
    model: type[Settings], prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Path and field of every single setting of a model, those of groups among them."""
    for name, field in model.model_fields.items():
        group = group_of(field)
        if group is None:
            yield (*prefix, name), field
        else:
            yield from setting_fields(group, (*prefix, name))


def marks(model: type[Settings]) -> list[tuple[str, OnlyWith]]:
    """The fields that exist for some values of another, each with its mark."""
    return [
        (name, mark)
        for name, field in model.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, OnlyWith)
    ]


def choice(model: type[Settings], mark: OnlyWith, given: Mapping[str, Any]) -> Any:
    """Value of the setting that a mark depends on: the given one, else its default."""
    field = model.model_fields[mark.setting]
    return read_value(given[mark.setting], field.annotation) if mark.setting in given else field.default


def applies(model: type[Settings], mark: OnlyWith, given: Mapping[str, Any]) -> bool:
    """Whether what a mark stands at exists with the given values."""
    return choice(model, mark, given) in mark.values


def _read_field(field: FieldInfo | None, value: Any) -> Any:
    if field is None:
        return value
    if group_of(field) is None:
        return read_value(value, field.annotation)
    default = field.get_default(call_default_factory=True)
    if isinstance(value, Mapping) and isinstance(default, Settings):
        return _completed(value, default)
    return value


def _completed(given: Mapping[str, Any], default: Settings) -> dict[str, Any]:
    """What is given of a group, and the default's values of the rest."""
    model = type(default)
    values = {name: getattr(default, name) for name in default.model_fields_set} | dict(given)
    for name, mark in marks(model):
        if name not in given and name in values and not applies(model, mark, values):
            del values[name]
    for name, value in given.items():
        inner = getattr(default, name, None)
        if isinstance(value, Mapping) and isinstance(inner, Settings):
            values[name] = _completed(value, inner)
    return values
