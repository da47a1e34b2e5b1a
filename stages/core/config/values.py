"""One grammar of values, in flags, ``--set``, environment variables and YAML: the setting's type decides.

| type | written |
|---|---|
| text, path | as it stands: ``off``, ``0123`` and ``1e-3`` are text; so is a choice |
| boolean | ``true`` or ``false`` (also ``yes``, ``no``, ``on``, ``off``, ``1``, ``0``) |
| integer, number | ``12``, ``0.001``, ``1e-3`` |
| list | ``480,576`` or ``[480, 576]``; ``[]`` is empty; an item with a comma is quoted: ``"a, b",c`` |
| anything optional | ``none``, ``null`` or nothing at all for none |
"""

from __future__ import annotations

import csv
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

NONE_WORDS = ("", "none", "null", "~")
BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
NAMES = {int: "an integer", float: "a number", str: "text", Path: "a path", bool: "true or false"}
PLURALS = {int: "integers", float: "numbers", str: "texts", Path: "paths", bool: "booleans"}


def read_value(value: Any, annotation: Any) -> Any:
    """Turn text into a value of a setting's type; what is no text of that type stays as it is.

    Args:
        value: Text, a list whose items may be text, or a value that needs no reading.
        annotation: The type of the setting.
    """
    try:
        return _read(value, annotation)
    except ValueError:
        return value  # pydantic refuses it and the caller says how it is written


def format_value(value: Any) -> str:
    """Write a value as :func:`read_value` reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {format_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(_quoted(format_value(item)) for item in value) or "[]"
    return str(value)


def optional_type(annotation: Any) -> tuple[Any, bool]:
    """Split a type into what it is when given, and whether it may be none."""
    annotation = _bare(annotation)[0]
    if not _is_union(annotation):
        return annotation, False
    members = [member for member in typing.get_args(annotation) if member is not types.NoneType]
    may_be_none = len(members) < len(typing.get_args(annotation))
    return (members[0] if len(members) == 1 else typing.Union[tuple(members)]), may_be_none  # noqa: UP007


def is_list(annotation: Any) -> bool:
    """Whether a type is a list of values."""
    return typing.get_origin(optional_type(annotation)[0]) in (tuple, list, set, frozenset)


def choices(annotation: Any) -> tuple[str, ...]:
    """The words that a type allows, or that the items of a list may be; empty if it is no choice."""
    bare = optional_type(annotation)[0]
    if is_list(bare):
        bare = optional_type(item_type(bare, 0))[0]
    if typing.get_origin(bare) is Literal:
        return tuple(format_value(option) for option in typing.get_args(bare))
    return ()


def item_type(annotation: Any, index: int) -> Any:
    """Type of an item of a list type."""
    arguments = [a for a in typing.get_args(annotation) if a is not Ellipsis]
    return arguments[min(index, len(arguments) - 1)] if arguments else Any


def item_range(annotation: Any) -> str:
    """Range of the items of a list of numbers, as :func:`range_words`; empty for anything else."""
    bare = optional_type(annotation)[0]
    return range_words(_bare(item_type(bare, 0))[1]) if is_list(bare) else ""


def type_words(field: FieldInfo) -> str:
    """A setting's type and range in words: ``an integer >= 1``, ``a list of numbers in (0, 1]``."""
    bare, may_be_none = optional_type(field.annotation)
    words = _words(bare, field.metadata)
    return f"{words}, or none" if may_be_none else words


def range_words(metadata: Iterable[Any]) -> str:
    """Range of a number: ``in [0, 1]``, ``>= 1``, ``> 0``; empty if there is none."""
    low: Any = None
    high: Any = None
    above = below = ""
    for mark in metadata:
        if isinstance(mark, annotated_types.Ge):
            low, above = mark.ge, ">="
        elif isinstance(mark, annotated_types.Gt):
            low, above = mark.gt, ">"
        elif isinstance(mark, annotated_types.Le):
            high, below = mark.le, "<="
        elif isinstance(mark, annotated_types.Lt):
            high, below = mark.lt, "<"
    if low is not None and high is not None:
        left, right = "[" if above == ">=" else "(", "]" if below == "<=" else ")"
        return f"in {left}{_number(low)}, {_number(high)}{right}"
    if low is not None:
        return f"{above} {_number(low)}"
    return f"{below} {_number(high)}" if high is not None else ""


def _read(value: Any, annotation: Any) -> Any:
    annotation = _bare(annotation)[0]
    if _is_union(annotation):
        return _read_union(value, annotation)
    if is_list(annotation):
        items = _split(value) if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            return value
        return [read_value(item, item_type(annotation, i)) for i, item in enumerate(items)]
    if not isinstance(value, str):
        return value
    if typing.get_origin(annotation) is Literal:
        return _option(value, annotation)
    text = value.strip()
    if annotation is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(value)
        return BOOLEANS[text.lower()]
    if annotation in (int, float):
        return annotation(text)
    return value


def _read_union(value: Any, annotation: Any) -> Any:
    members = typing.get_args(annotation)
    if types.NoneType in members and isinstance(value, str) and value.strip().lower() in NONE_WORDS:
        return None
    for member in members:
        if member is types.NoneType:
            continue
        try:
            return _read(value, member)
        except ValueError:
            continue
    raise ValueError(value)


def _option(text: str, annotation: Any) -> Any:
    for option in typing.get_args(annotation):
        if format_value(option) == text.strip():
            return option
    raise ValueError(text)


def _split(text: str) -> list[str]:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    if not text:
        return []
    items = [item.strip() for item in next(csv.reader([text], skipinitialspace=True))]
    if text.endswith(","):  # `480,` is a list of one
        items.pop()
    return [item[1:-1] if len(item) > 1 and item[0] == item[-1] == "'" else item for item in items]


def _quoted(item: str) -> str:
    awkward = item == "" or item != item.strip() or any(mark in item for mark in ",\"'[]")
    return '"' + item.replace('"', '""') + '"' if awkward else item


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type without its marks, and the marks."""
    if typing.get_origin(annotation) is not Annotated:
        return annotation, ()
    bare, *marks = typing.get_args(annotation)
    flat: list[Any] = []
    for mark in marks:
        flat += mark.metadata if isinstance(mark, FieldInfo) else [mark]
    return bare, tuple(flat)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _words(annotation: Any, marks: Sequence[Any]) -> str:
    bare, own_marks = _bare(annotation)
    marks = [*marks, *own_marks]
    if _is_union(bare):
        return " or ".join(_words(member, marks) for member in typing.get_args(bare))
    if typing.get_origin(bare) is Literal:
        return _one_of(bare)
    if is_list(bare):
        item, item_marks = _bare(item_type(bare, 0))
        if typing.get_origin(item) is Literal:
            words = f"a list out of {', '.join(choices(item))}"
        else:
            words = f"a list of {PLURALS.get(item, 'values')} {range_words(item_marks)}".rstrip()
        least = max((m.min_length for m in marks if isinstance(m, annotated_types.MinLen)), default=0)
        return f"{words} with at least {least} item{'s' if least > 1 else ''}" if least else words
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return f"a group of settings ({', '.join(bare.model_fields)})"
    return f"{NAMES.get(bare, 'a value')} {range_words(marks)}".rstrip()


def _one_of(literal: Any) -> str:
    words = choices(literal)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)
