"""Row-aligned columns that are validated once and then selected and joined as one.

The idea is segment-anything's `MaskData` (`utils/amg.py`), with types: a subclass is a frozen dataclass whose fields
say what they hold, so that no caller indexes parallel arrays by hand:

    @dataclass(frozen=True, eq=False)
    class Candidates(Columns):
        boxes_xyxy: Annotated[Tensor, Column("float32", 4)]
        predicted_iou: Annotated[Tensor, Column("float32")]

    kept = candidates[candidates.predicted_iou > 0.9]
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor  # artifacts are read and written without torch

    Index: TypeAlias = slice | Sequence[int] | NDArray[Any] | Tensor
else:
    Index = Any


@dataclass(frozen=True)
class Column:
    """What a field holds, one entry per row.

    Attributes:
        dtype: numpy's name of the dtype (`float32`, `int64`, `bool`), `float` for any floating dtype; empty for a list
            or tuple of Python objects.
        shape: sizes of the axes behind the first; None is any size.
    """

    dtype: str = ""
    shape: tuple[int | None, ...] = ()

    def __init__(self, dtype: str = "", *shape: int | None) -> None:
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", shape)

    def check(self, name: str, value: Any) -> None:
        """Refuse a value of another dtype or shape; the number of rows is not looked at.

        Raises:
            TypeError: not an array where one is needed, or of another dtype.
            ValueError: of another shape.
        """
        if not self.dtype:
            if not isinstance(value, list | tuple):
                raise TypeError(f"{name} must be a list or tuple, it is {type(value).__name__}")
            return
        if not (hasattr(value, "dtype") and hasattr(value, "shape")):
            raise TypeError(f"{name} must be an array of {self.dtype}, it is {type(value).__name__}")
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        if dtype != self.dtype and not (self.dtype == "float" and "float" in dtype):
            raise TypeError(f"{name} must be {self.dtype}, it is {dtype}")
        same = len(shape) == 1 + len(self.shape) and all(
            wanted in (None, size) for wanted, size in zip(self.shape, shape[1:], strict=True)
        )
        if not same:
            wanted = ", ".join(["n", *("any" if size is None else str(size) for size in self.shape)])
            raise ValueError(f"{name} must have shape ({wanted}), it is {shape}")


@dataclass(frozen=True, eq=False)
class Columns:
    """Base of structures with one row per thing; a column whose default is None may be absent.

    Fields without a `Column` are about all rows: they stay as they are, and joined parts take the first one's.

    Raises:
        TypeError, ValueError: at construction, see `Column.check`; ValueError also for columns of unequal length.
    """

    columns: ClassVar[dict[str, Column]] = {}

    def __init_subclass__(cls) -> None:
        hints = typing.get_type_hints(cls, include_extras=True)
        cls.columns = {
            name: extra
            for name, hint in hints.items()
            for extra in getattr(hint, "__metadata__", ())
            if isinstance(extra, Column)
        }

    def __post_init__(self) -> None:
        lengths = {}
        for name, column in self.columns.items():
            value = getattr(self, name)
            if value is not None or getattr(type(self), name, ...) is not None:
                column.check(f"{type(self).__name__}.{name}", value)
                lengths[name] = len(value)
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"{type(self).__name__} has columns of unequal length: {shown}")

    def __len__(self) -> int:
        return len(getattr(self, next(iter(self.columns))))

    def __getitem__(self, index: Index) -> Self:
        """The chosen rows, in the order of the index: positions, a slice, or one bool per row."""
        rows = _Rows(index, len(self))
        return replace(self, **{name: rows.of(getattr(self, name)) for name in self.columns})

    def to(self, device: str) -> Self:
        """The same rows with every tensor on a device."""
        values = {name: getattr(self, name) for name in self.columns}
        return replace(
            self, **{name: value.to(device) for name, value in values.items() if hasattr(value, "to")}
        )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All rows of the parts, in order; at least one part.

        Raises:
            ValueError: no part, or an optional column that some parts with rows have and others lack.
        """
        if not parts:
            raise ValueError(f"no {cls.__name__} to join")
        return replace(parts[0], **{name: _joined(cls, name, parts) for name in cls.columns})


class _Rows:
    """An index, in the form that each kind of column takes."""

    def __init__(self, index: Index, count: int) -> None:
        if isinstance(index, list | tuple):
            index = np.asarray(index, dtype=np.int64 if len(index) == 0 else None)
        if not isinstance(index, slice) and getattr(index, "ndim", None) != 1:
            raise TypeError(f"rows are chosen by positions, a slice or flags, not by {index!r}")
        self.index, self.count = index, count

    def of(self, value: Any) -> Any:
        """The chosen rows of a column."""
        if value is None:
            return None
        if isinstance(value, np.ndarray):
            return value[self._plain()]
        if isinstance(value, list | tuple):
            return type(value)(value[row] for row in np.arange(self.count)[self._plain()].tolist())
        if isinstance(self.index, np.ndarray):
            import torch  # here already: the column is a tensor

            return value[torch.from_numpy(self.index).to(value.device)]
        return value[self.index]

    def _plain(self) -> Any:
        return self.index.cpu().numpy() if hasattr(self.index, "cpu") else self.index


def _joined(structure: type[Columns], name: str, parts: Sequence[Columns]) -> Any:
    # Parts without rows say nothing about which columns there are: no detection has no masks.
    values = [getattr(part, name) for part in ([part for part in parts if len(part)] or parts[:1])]
    if any(value is None for value in values):
        if any(value is not None for value in values):
            raise ValueError(f"some {structure.__name__} have {name} and others have none")
        return None
    if isinstance(values[0], list | tuple):
        return type(values[0])(item for value in values for item in value)
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    import torch  # here already: the columns are tensors

    return torch.cat(values)
