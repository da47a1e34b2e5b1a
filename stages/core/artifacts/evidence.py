"""Map evidence of proposals, into and out of the pools of `proposals.h5`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.schemas import EVIDENCE_VALUES, MAP_KINDS
from stages.core.artifacts.table import Table
from stages.core.errors import SchemaError

CELL = len(MAP_KINDS) * len(EVIDENCE_VALUES)
"""Values of one box and class."""


@dataclass(frozen=True)
class ProposalEvidence:
    """What the maps of one image say about its N proposals.

    Attributes:
        classes: (K,) int64, ascending 0-based classes that have maps.
        values: (N, K, kinds, 3) float32 by `MAP_KINDS` and `EVIDENCE_VALUES`, in [0, 1]; nan where there is no map of
            that kind or it says nothing.
    """

    classes: NDArray[np.int64]
    values: NDArray[np.float32]

    @staticmethod
    def empty(boxes: int) -> ProposalEvidence:
        """Evidence of no class about that many boxes."""
        shape = (boxes, 0, len(MAP_KINDS), len(EVIDENCE_VALUES))
        return ProposalEvidence(np.zeros(0, np.int64), np.zeros(shape, np.float32))


def evidence_pools(evidence: ProposalEvidence) -> dict[str, list[NDArray[Any]]]:
    """The pool items of a proposals table, one of each per box."""
    boxes = len(evidence.values)
    return {
        "evidence_class": [evidence.classes.astype(np.int32)] * boxes,
        "evidence": [own.ravel() for own in evidence.values.astype(np.float16)],
    }


def stored_evidence(table: Table, image_id: str) -> ProposalEvidence:
    """Evidence of an image's proposals, in the order of its rows; of no class where no maps were given.

    Raises:
        SchemaError: the counts do not fit together, or boxes of one image name different classes.
    """
    rows = table.rows(image_id)
    boxes = len(rows["x1"])
    if not boxes:
        return ProposalEvidence.empty(0)
    classes, values = _matrix(table, rows, "evidence_class"), _matrix(table, rows, "evidence")
    if (
        classes is None
        or values is None
        or (classes != classes[0]).any()
        or values.shape[1] != classes.shape[1] * CELL
    ):
        raise SchemaError(f"image {image_id}: the map evidence of its proposals does not fit their classes")
    shape = (boxes, classes.shape[1], len(MAP_KINDS), len(EVIDENCE_VALUES))
    return ProposalEvidence(classes[0].astype(np.int64), values.astype(np.float32).reshape(shape))


def _matrix(table: Table, rows: dict[str, NDArray[Any]], pool: str) -> NDArray[Any] | None:
    """Items of a pool as the rows of a matrix; None if they are not equally long."""
    starts, counts = rows[f"{pool}_start"], rows[f"{pool}_count"]
    if (counts != counts[0]).any():
        return None
    matrix: NDArray[Any] = table.pools[pool][starts[:, None] + np.arange(counts[0])]
    return matrix
