"""Detectors of a size for tests, and what `retrain` and `wsis` need to be run on tiny images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.core.artifacts.coco_json import write_dataset
from stages.core.config import StageConfig
from stages.core.datasets.catalog import open_split
from stages.core.datasets.split import WeakSplit
from stages.core.detectors import checkpoints
from stages.core.spec import Stage, StageContext
from stages.core.structures.detections import Detections
from stages.core.structures.rle import encode_masks
from tests.datasets_builders import HEIGHT, SCENES, WIDTH, make_voc

SHARED: dict[str, Any] = {
    "backbone": "resnet10t", "out_strides": (8, 16), "freeze_through_stride": 8, "test_short_side": 32, "max_size": 64,
    "train_short_sides": (32,), "epochs": 2, "batch_size": 2, "score_thresh": 0.0, "detections_per_image": 3,
    "num_threads": 1,
}  # fmt: skip
"""Settings of `retrain` and `wsis` but for those of the architecture."""
TWO_STAGE: dict[str, Any] = {
    "fpn_channels": 8, "anchor_sizes": (16, 32), "rpn_pre_nms_top_n": 20, "box_batch_size_per_image": 8, "fc_dim": 16,
}  # fmt: skip
TINY = SHARED | {"faster_rcnn": TWO_STAGE}
MASKED = SHARED | {"mask_rcnn": TWO_STAGE | {"mask_channels": 8}}


def context(tmp_path: Path, subset: str, stage: str, **inputs: Path) -> StageContext:
    if not (tmp_path / "data" / "tiny").exists():
        make_voc(tmp_path / "data")
    out = tmp_path / stage / subset
    out.mkdir(parents=True, exist_ok=True)
    split = open_split(f"tiny_{subset}", tmp_path / "data")
    return StageContext(split=split, run=tmp_path, out=out, inputs=inputs)


def write_pgt(tmp_path: Path, split: WeakSplit, skip: tuple[str, ...] = (), masked: bool = False) -> Path:
    """Pseudo boxes equal to the objects that were drawn, with masks that fill them if asked for."""
    boxes = {}
    for image_id, objects in SCENES["train"].items():
        classes = [split.classes.index(o.name) for o in objects]
        corners = np.array([o.box_xyxy for o in objects], np.float32).reshape(-1, 4)
        full = np.zeros((len(objects), HEIGHT, WIDTH), bool)
        for mask, (x1, y1, x2, y2) in zip(full, corners.astype(int), strict=True):
            mask[y1:y2, x1:x2] = True
        masks = encode_masks(full) if masked else None
        found = Detections(corners, np.array(classes, np.int64), np.ones(len(objects), np.float32), masks)
        boxes[image_id] = Detections.empty() if image_id in skip else found
    path = tmp_path / "pgt.json"
    write_dataset(path, split, boxes, dict.fromkeys(boxes, (HEIGHT, WIDTH)))
    return path


def run(stage: Stage[Any], config: StageConfig, at: StageContext) -> dict[str, int | float]:
    stage.plan(config, at)
    return stage.run(config, at)


def count_detector_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count from now on how often files of detectors are read and built in this process."""
    calls: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        return call

    for name in ("read_metadata", "build", "load_tensors"):
        monkeypatch.setattr(checkpoints, name, counted(name, getattr(checkpoints, name)))
    return calls


@dataclass
class BoxSegmenter:
    """Every mask is the left half of its box; counts encodings."""

    encodings: int = 0
    mask_threshold: float = 0.0

    def encode(self, pixels_HW3: Any) -> tuple[int, int]:
        self.encodings += 1
        return pixels_HW3.shape[0], pixels_HW3.shape[1]

    def decode(
        self, encoded: tuple[int, int], points: None, labels: None, boxes: Tensor, *, multimask: bool
    ) -> Any:
        logits = torch.full((len(boxes), 3 if multimask else 1, *encoded), -1.0)
        for row, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
            logits[row, :, y1:y2, x1 : (x1 + x2) // 2] = 1.0
        ious = torch.ones(logits.shape[:2])
        return type("Decoded", (), {"low_res_logits": logits, "predicted_iou": ious})

    def upscale(self, logits: Tensor, encoded: tuple[int, int]) -> Tensor:
        return logits
