"""A split without files, for tests of the shared library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from stages.core.datasets.split import WeakSplit


@dataclass(frozen=True)
class FakeSplit:
    ids: tuple[str, ...] = ("a", "b", "c")
    name: str = "toy_train"
    role: str = "train"
    train_split: str = "toy_train"
    classes: tuple[str, ...] = ("cat", "dog")
    category_ids: tuple[int, ...] = (7, 9)
    fingerprint: str = "f"
    problems: tuple[object, ...] = field(default=())
    notes: tuple[str, ...] = ()

    @property
    def has_tags(self) -> bool:
        return self.role == "train"

    def tags(self, image_id: str) -> tuple[int, ...]:
        return (0,)

    def coco_id(self, image_id: str) -> int:
        return "abcdefghij".index(image_id) + 1

    def id_of(self, coco_id: int) -> str:
        if not 1 <= coco_id <= 10:
            raise KeyError(coco_id)
        return "abcdefghij"[coco_id - 1]

    def file_name(self, image_id: str) -> str:
        return f"{image_id}.jpg"

    def limited(self, count: int) -> FakeSplit:
        return FakeSplit(self.ids[:count], self.name, self.role)


def weak(split: FakeSplit) -> WeakSplit:
    """The fake under the name of the real thing."""
    return cast("WeakSplit", split)
