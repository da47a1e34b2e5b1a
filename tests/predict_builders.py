"""`predict` as a command, and runs that it takes for finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stages.core.artifacts.manifest import Manifest, write_manifest
from stages.core.detectors.spec import DetectorSpec, Kind
from stages.core.detectors.two_stage.faster_rcnn import build_detector, save_detector
from tests.command_builder import run

CLASSES = ("cat", "dog")
SPEC = DetectorSpec(
    backbone="resnet10t", out_strides=(8, 16), freeze_through_stride=8, fpn_channels=16, anchor_sizes=(16, 32),
    test_short_side=64, max_size=96, rpn_pre_nms_top_n=50, box_batch_size_per_image=16, fc_dim=32, mask_channels=8,
    score_thresh=0.0, detections_per_image=4,
)  # fmt: skip


def write_detector(
    path: Path, kind: Kind = "faster-rcnn", seed: int = 0, classes: Sequence[str] = CLASSES
) -> Path:
    torch.manual_seed(seed)
    spec = SPEC.model_copy(update={"kind": kind})
    path.parent.mkdir(parents=True, exist_ok=True)
    save_detector(path, build_detector(spec, classes, pretrained=False), spec, classes)
    return path


def finished(folder: Path, stage: str, files: tuple[str, ...], config: dict[str, Any] | None = None) -> None:
    """The manifest that the stage would have left."""
    write_manifest(
        folder,
        Manifest(
            stage=stage, split=folder.name, config=config or {}, seed=0, version="0", git=None, command=[],
            outputs=dict.fromkeys(files, ""),
        ),
    )  # fmt: skip


def predict(*arguments: object) -> int:
    return run("-q", "predict", *(str(a) for a in arguments), "--workers", "0", "--device", "cpu")
