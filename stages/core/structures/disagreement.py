"""How far two sets of boxes of one image disagree: what a teacher teaches, and what its student says after learning.

Mistakes of pseudo boxes that a detector does not repeat are those that other images contradict: the more of an image's
boxes its own student denies or adds, the more of them are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.core.structures.detections import Detections

SAME_OBJECT_IOU = 0.5
"""Overlap from which two boxes of one class are one object."""
ADDED_SCORE = 0.3
"""Score from which a student's box that no pseudo box explains counts as added."""


@dataclass(frozen=True)
class Disagreement:
    """Expected mistakes of one image's boxes.

    Attributes:
        denied: Pseudo boxes that the student does not find again, each by 1 minus the best score there.
        added: Student's boxes that are no pseudo box, each by its score.
        missing: Tags without a pseudo box.
    """

    denied: float
    added: float
    missing: float

    @property
    def total(self) -> float:
        """What images are ordered by.

        Boxes that were added are left out: they order images worse than the others do (docs/results.md).
        """
        return self.denied + self.missing

    def reason(self) -> str:
        """The largest part in words."""
        parts = {
            "boxes that the detector does not find": self.denied,
            "objects that the detector adds": self.added,
            "tags without a box": self.missing,
        }
        name, value = max(parts.items(), key=lambda part: part[1])
        return f"{value:.1f} {name}" if value > 0 else "no disagreement"


def disagreement(taught: Detections, said: Detections, tags: Sequence[int]) -> Disagreement:
    """Compare an image's pseudo boxes with the detections of the detector that learned from them.

    Args:
        taught: Pseudo boxes.
        said: Detections of the student, of any score.
        tags: Classes that the image shows.
    """
    same_PS = _same_objects(taught, said)
    supported_P = np.where(same_PS, said.scores[None, :], 0.0).max(axis=1, initial=0.0)
    added_S = ~same_PS.any(axis=0) & (said.scores >= ADDED_SCORE) if len(said) else np.zeros(0, np.bool_)
    kept = _without_repetitions(said, added_S)
    return Disagreement(
        denied=float((1 - supported_P).sum()),
        added=float(said.scores[kept].sum()),
        missing=float(len(set(tags) - set(taught.classes.tolist()))),
    )


def _same_objects(taught: Detections, said: Detections) -> NDArray[np.bool_]:
    """Whether a pseudo box and a detection are one object: (P, S)."""
    overlap_PS = _iou(taught.boxes_xyxy, said.boxes_xyxy)
    same: NDArray[np.bool_] = (overlap_PS >= SAME_OBJECT_IOU) & (
        taught.classes[:, None] == said.classes[None, :]
    )
    return same


def _without_repetitions(said: Detections, chosen_S: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows that were chosen, the best of those that overlap, whatever their class."""
    rows = np.flatnonzero(chosen_S)
    rows = rows[np.argsort(-said.scores[rows], kind="stable")]
    kept: list[int] = []
    for row in rows.tolist():
        if not kept or _iou(said.boxes_xyxy[[row]], said.boxes_xyxy[kept]).max() < SAME_OBJECT_IOU:
            kept.append(row)
    return np.array(kept, np.int64)


def _iou(one_N4: NDArray[np.float32], other_M4: NDArray[np.float32]) -> NDArray[np.float64]:
    corners = (
        np.maximum(one_N4[:, None, :2], other_M4[None, :, :2]),
        np.minimum(one_N4[:, None, 2:], other_M4[None, :, 2:]),
    )
    both_NM = np.clip(corners[1] - corners[0], 0, None).astype(np.float64).prod(axis=2)
    area_N, area_M = (np.prod(b[:, 2:] - b[:, :2], axis=1, dtype=np.float64) for b in (one_N4, other_M4))
    iou: NDArray[np.float64] = both_NM / np.maximum(area_N[:, None] + area_M[None, :] - both_NM, 1e-9)
    return iou
