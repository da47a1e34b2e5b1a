"""Images whose pseudo boxes of a class are too uncertain to teach it.

Detections of a class that score low even at their best in an image are mostly wrong ones: a small object that no
proposal fits, or a map that points elsewhere. Selection within an image cannot see that; comparison with the class's
other images can. Learning from the easier images first is self-paced learning (Kumar, Packer and Koller, NIPS 2010).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stages.pgt.adaptive import ImageSelection


def without_uncertain(
    selections: Mapping[str, ImageSelection], scores: Mapping[str, NDArray[np.floating]], fraction: float
) -> dict[str, ImageSelection]:
    """Selections in which every class keeps its boxes in the most certain images alone.

    Args:
        selections: Image id -> selection.
        scores: Image id -> scores of the image's detections, (n,), which the rows of the selection index.
        fraction: Of the images with boxes of a class, the part that keeps them, in (0, 1], rounded up. An image is as
            certain of a class as its best-scoring kept box; of equal ones the earlier stays.
    """
    best: dict[int, list[tuple[float, str]]] = {}
    for image_id, selection in selections.items():
        for part in selection.per_class:
            if len(part.rows):
                best.setdefault(part.class_index, []).append(
                    (float(scores[image_id][part.rows].max()), image_id)
                )
    dropped: dict[str, set[int]] = {}
    for label, certainty in best.items():
        ranked = sorted(certainty, key=lambda entry: -entry[0])  # stable: equal ones stay in order
        for _, image_id in ranked[math.ceil(fraction * len(ranked)) :]:
            dropped.setdefault(image_id, set()).add(label)
    return {
        image_id: selection.without_classes(dropped.get(image_id, set()))
        for image_id, selection in selections.items()
    }
