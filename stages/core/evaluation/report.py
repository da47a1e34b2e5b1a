"""What an evaluation found: named figures of one artifact, overall and per class."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Report:
    """Figures of one artifact on one split.

    Attributes:
        task: What was measured: one of ``TASKS``.
        artifact: File name of the artifact.
        split: Split name.
        images: Images measured.
        metrics: Figure -> value; fractions in [0, 1], counts per image as they are, nan where undefined.
        per_class: Class name -> figure -> value; the same figures for every class.
        notes: Remarks a reader of the figures must know.
    """

    task: str
    artifact: str
    split: str
    images: int
    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries; undefined figures become None, as JSON has no nan."""
        return {
            "task": self.task,
            "artifact": self.artifact,
            "split": self.split,
            "images": self.images,
            "metrics": finite(self.metrics),
            "per_class": {name: finite(values) for name, values in self.per_class.items()},
            "notes": list(self.notes),
        }


def finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """The same figures with None for nan."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}
