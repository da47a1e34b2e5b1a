"""Pictures of `wsod`: the detections of each image that come near the best of their class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.core.artifacts.coco_json import read_results
from stages.core.datasets.split import WeakSplit
from stages.core.structures.detections import Detections
from stages.core.viz.detection_pictures import draw_detections

SHARE_OF_CLASS_BEST = 0.5
SHARE_OF_IMAGE_BEST = 0.2


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw the strongest detections of some images, one PNG each.

    Args:
        out: the stage's output folder.
        split: where the images are.
        ids: which images.
        folder: where the pictures go.
    """
    return draw_detections(read_results(out / "detections.json", split), split, ids, folder, strongest)


def strongest(found: Detections) -> Detections:
    """Those worth showing, best first: scores of this stage mean much beside one another and little by themselves."""
    best = np.zeros(1 + int(found.classes.max(initial=0)), np.float32)
    np.maximum.at(best, found.classes, found.scores)
    enough = found.scores >= np.maximum(
        SHARE_OF_CLASS_BEST * best[found.classes], SHARE_OF_IMAGE_BEST * best.max()
    )
    return found[enough].best_first()
