"""Detections of a tiny split and the `pgt` stage on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.core.artifacts.coco_json import write_results
from stages.core.datasets.catalog import open_split
from stages.core.spec import StageContext
from stages.core.structures.detections import Detections
from stages.pgt.config import PgtConfig
from stages.pgt.stage import PgtStage
from tests.datasets_builders import make_voc

BIRD, CAT, DOG = 0, 1, 2


def found(*rows: tuple[int, float, tuple[int, int, int, int]]) -> Detections:
    return Detections(
        np.array([box for _, _, box in rows], np.float32).reshape(-1, 4),
        np.array([label for label, _, _ in rows], np.int64),
        np.array([score for _, score, _ in rows], np.float32),
    )


DETECTIONS = {
    # Tags cat, dog: the bird goes, the weak cat goes, two dogs stay.
    "img_1": found(
        (CAT, 0.8, (4, 6, 24, 26)),
        (CAT, 0.1, (30, 0, 44, 12)),
        (DOG, 0.02, (20, 8, 40, 30)),
        (DOG, 0.015, (0, 0, 12, 12)),
        (BIRD, 0.9, (0, 0, 9, 9)),
    ),
    # Tag dog: nothing was detected of it.
    "img_2": found((CAT, 0.7, (1, 1, 20, 20))),
    # Tag bird: a single, weak detection is kept.
    "img_3": found((BIRD, 0.001, (10, 10, 30, 20))),
}


def context(
    tmp_path: Path, subset: str = "train", detections: dict[str, Detections] | None = None
) -> StageContext:
    make_voc(tmp_path / "data")
    split = open_split(f"tiny_{subset}", tmp_path / "data")
    path = tmp_path / "detections.json"
    given = DETECTIONS if detections is None else detections
    write_results(path, split, {i: boxes for i, boxes in given.items() if i in split.ids})
    out = tmp_path / "pgt" / subset
    out.mkdir(parents=True)
    return StageContext(split=split, run=tmp_path, out=out, inputs={"detections": path})


def run(at: StageContext, **settings: Any) -> dict[str, int | float]:
    config = PgtConfig.model_validate(settings)
    PgtStage().plan(config, at)
    return PgtStage().run(config, at)
