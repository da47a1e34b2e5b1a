"""Adaptive pseudo ground truth: which detections of a tagged image become training boxes (paper Algorithm 2).

Rules work on the detections of one class in one image, in descending score. `paper` is Algorithm 2;
`improved` scales scores by the best instead of by their range; `topk` and `pgf` are there for comparison
(docs/method.md, section 6).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from stages.core.ops.boxes import box_area
from stages.core.ops.nms import class_wise_nms
from stages.pgt.containment import Floats, Indices, Policy, ordered, simultaneous

Mode = Literal["paper", "improved", "topk", "pgf"]


@dataclass(frozen=True)
class Rule:
    """One selection rule; each mode reads only the fields named for it."""

    mode: Mode = "improved"
    tau_s: float = 0.3
    """paper: normalised score must exceed it; improved: relative score must reach it; pgf: raw score must
    exceed it. In [0, 1].
    """
    tau_o: float = 0.85
    """paper, improved, pgf: containment from which a box counts as inside another, in (0, 1]."""
    nms_thresh: float = 0.3
    """improved: class-wise NMS before containment; 1 switches it off."""
    containment_policy: Policy = "drop_inner"
    """improved: what goes when one box lies inside another."""
    keep_top1: bool = True
    """improved: the class's best box is never removed by containment."""
    top_k: int = 1
    """topk: boxes per class and image."""
    exempt_classes: frozenset[int] = field(default_factory=frozenset)
    """pgf: 0-based classes without containment removal, whose instances often overlap."""


@dataclass(frozen=True)
class ClassSelection:
    """Detections of one class in one image that survived, as rows of the image's arrays in descending score."""

    class_index: int
    detected: int
    above_threshold: int
    rows: Indices
    uncertain: bool = False
    """Had rows, but other images of the class are more certain (`keep_fraction`)."""


@dataclass(frozen=True)
class ImageSelection:
    """Pseudo ground truth of one image."""

    per_class: tuple[ClassSelection, ...]
    """One entry for every tag, in class order."""
    unusable: int
    """Rows dropped first: no area, or a coordinate or score that is not finite."""

    @property
    def rows(self) -> Indices:
        """All kept rows, class by class."""
        parts = [selection.rows for selection in self.per_class]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    @property
    def missing(self) -> tuple[int, ...]:
        """Tags that got no box: no usable detection of the class exists, or it is uncertain."""
        return tuple(s.class_index for s in self.per_class if len(s.rows) == 0)

    def without_classes(self, classes: Container[int]) -> ImageSelection:
        """The same selection without the rows of some classes, which become uncertain."""
        per_class = tuple(
            replace(own, rows=own.rows[:0], uncertain=True)
            if own.class_index in classes and len(own.rows)
            else own
            for own in self.per_class
        )
        return replace(self, per_class=per_class)


def select(
    boxes_xyxy: Floats, scores: Floats, classes: Indices, tags: Iterable[int], rule: Rule
) -> ImageSelection:
    """Apply `rule` to the detections of one image.

    boxes_xyxy: (n, 4) half-open pixels; scores: (n,); classes: (n,) 0-based; tags: the classes the image is
    known to hold. Detections of other classes are ignored.
    """
    usable = np.isfinite(boxes_xyxy).all(axis=1) & np.isfinite(scores)
    usable[usable] = box_area(torch.from_numpy(boxes_xyxy[usable])).numpy() > 0
    per_class = []
    for tag in sorted(set(tags)):
        rows = np.flatnonzero(usable & (classes == tag))
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        kept, above = _select_class(
            boxes_xyxy[rows].astype(np.float64), scores[rows].astype(np.float64), tag, rule
        )
        per_class.append(ClassSelection(tag, len(rows), above, rows[kept]))
    return ImageSelection(tuple(per_class), int((~usable).sum()))


def normalised_scores(scores: Floats) -> Floats:
    """Algorithm 2: (S - min) / (max - min). One box or equal scores give 0/0: each is then the maximum, hence 1."""
    low, high = scores.min(), scores.max()
    if high == low:
        return np.ones_like(scores)
    return np.asarray((scores - low) / (high - low))


def relative_scores(scores: Floats) -> Floats:
    """Scores over the class's best, which needs no second box and does not move with the detector's cut-off.

    With a best score of 0 nothing distinguishes the boxes: those at the maximum get 1, the others
    (negative) 0.
    """
    best = scores.max()
    if best <= 0:
        return np.where(scores == best, 1.0, 0.0)
    return np.asarray(scores / best)


def _select_class(boxes: Floats, scores: Floats, tag: int, rule: Rule) -> tuple[Indices, int]:
    """Kept positions among one class's detections (descending score), and how many passed the score threshold."""
    if len(boxes) == 0:
        return np.empty(0, dtype=np.int64), 0
    if rule.mode == "topk":
        kept = np.arange(min(rule.top_k, len(boxes)))
        return kept, len(kept)
    if rule.mode == "paper":
        passed = np.flatnonzero(normalised_scores(scores) > rule.tau_s)
        return passed[simultaneous(boxes[passed], rule.tau_o)], len(passed)
    if rule.mode == "pgf":
        # The first box is kept whatever its score, as in the filter this mode restates.
        passed = np.flatnonzero((scores > rule.tau_s) | (np.arange(len(scores)) == 0))
        if tag in rule.exempt_classes:
            return passed, len(passed)
        return passed[simultaneous(boxes[passed], rule.tau_o)], len(passed)
    passed = np.flatnonzero(relative_scores(scores) >= rule.tau_s)
    separate = passed[_nms(boxes[passed], scores[passed], rule.nms_thresh)]
    return separate[ordered(boxes[separate], rule.tau_o, rule.containment_policy, rule.keep_top1)], len(
        passed
    )


def _nms(boxes: Floats, scores: Floats, iou: float) -> Indices:
    one_class = torch.zeros(len(boxes), dtype=torch.int64)
    kept = class_wise_nms(torch.from_numpy(boxes), torch.from_numpy(scores), one_class, iou)
    return np.sort(kept.numpy())
