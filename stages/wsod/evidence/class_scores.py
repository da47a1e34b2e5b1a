"""Class evidence of proposals: what the activation maps say about each, as one number per class.

Multiple-instance learning from tags alone ends on the part of an object that tells its class best. The maps that
placed the prompts know more: of two boxes on an object the whole one holds more of the map's mass, the part is denser,
and F1 of the two (`stages.core.ops.map_evidence`) weighs one against the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.artifacts.evidence import ProposalEvidence
from stages.core.artifacts.schemas import EVIDENCE_VALUES, MAP_KINDS

FLOOR = 0.05
"""Least evidence: products with it stay positive, so that a wrong map weakens a box but never removes it."""
PREFERRED = tuple(MAP_KINDS.index(kind) for kind in ("fine", "cross", "coarse"))
MASS, DENSITY = EVIDENCE_VALUES.index("mass"), EVIDENCE_VALUES.index("density")


def class_scores(evidence: ProposalEvidence, classes: Sequence[int]) -> NDArray[np.float32]:
    """Evidence score of each proposal for some classes: F1 of mass and density in the best kind of map there is.

    Fine maps come first, then cross, then coarse ones: each alone is better than their mean (docs/decisions.md).

    Returns:
        (N, len(classes)) in [0, 1]; a column of zeros for a class without usable maps.
    """
    scores = np.zeros((len(evidence.values), len(classes)), np.float32)
    rows = {label: row for row, label in enumerate(evidence.classes.tolist())}
    for column, label in enumerate(classes):
        if label not in rows:
            continue
        values_NK3 = evidence.values[:, rows[label]]
        mass, density = values_NK3[..., MASS], values_NK3[..., DENSITY]
        f1_NK = 2 * mass * density / np.maximum(mass + density, 1e-6)
        kind = next((kind for kind in PREFERRED if not np.isnan(f1_NK[:, kind]).all()), None)
        if kind is not None:
            scores[:, column] = np.nan_to_num(f1_NK[:, kind])
    return scores


def factors(scores: Tensor, power: float) -> Tensor:
    """What scores of the same shape (N, K) are multiplied by: evidence to a power, 1 for classes without evidence."""
    given_K = scores.amax(dim=0) > 0
    return torch.where(given_K, scores.clamp(min=FLOOR) ** power, 1.0)
