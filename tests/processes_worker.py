"""Trains every stage for some steps at toy size and writes its losses; started by tests, alone or under torchrun.

Usage: python -m tests.processes_worker DATA OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stages.cam.config import CamConfig
from stages.cam.stage import CamStage
from stages.core.backbones.timm_backbones import build_trunk
from stages.core.config import StageConfig
from stages.core.datasets import shapes
from stages.core.datasets.catalog import open_split
from stages.core.detectors import detr
from stages.core.detectors.two_stage import faster_rcnn
from stages.core.runtime import processes
from stages.core.runtime.seeding import seed_everything
from stages.core.spec import Stage, StageContext
from stages.retrain.config import RetrainConfig
from stages.retrain.stage import RetrainStage
from stages.wsis.config import WsisConfig
from stages.wsis.stage import WsisStage
from stages.wsod.config import WsodConfig
from stages.wsod.stage import WsodStage

EPOCHS = 5
DETECTOR: dict[str, Any] = {
    "backbone": "resnet10t", "strides": (8, 16), "frozen_through": 8, "fpn_channels": 8, "anchor_sizes": (16, 32),
    "test_size": 48, "max_size": 96, "train_sizes": (32, 48), "rpn_candidates": 20, "rois_per_image": 8,
    "head_width": 16, "epochs": EPOCHS, "batch_size": 4, "max_detections": 3, "threads": 1,
}  # fmt: skip
STAGES: dict[str, tuple[Stage[Any], StageConfig, tuple[str, ...]]] = {
    "cam": (
        CamStage(),
        CamConfig(
            dim=16, heads=2, depth=2, epochs=EPOCHS, batch_size=4, train_size=32, max_side=64,
            scales=(1.0,), threads=1,
        ),
        (),
    ),
    "wsod": (
        WsodStage(),
        WsodConfig(
            method="mist", pretrained=False, fused_channels=8, pool_size=2, hidden=16, train_sizes=(32, 48),
            test_size=32, epochs=EPOCHS, batch_size=4, threads=1, ema_decay=0.9,
        ),
        ("proposals",),
    ),
    "retrain": (RetrainStage(), RetrainConfig(**DETECTOR, drop="paper", tau_cls=1.0, tau_reg=1.0), ("pgt",)),
    "percentile": (
        RetrainStage(),
        RetrainConfig(**DETECTOR | {"train_sizes": (48,), "flip": 0.0}, drop="percentile", tau_cls=0.3, tau_reg=0.3),
        ("pgt",),
    ),
    # SGD: Adam makes whole steps of the rounding of tiny gradients, and then other queries are chosen and matched.
    "detr": (
        RetrainStage(),
        RetrainConfig(
            architecture="rt-detr", backbone="resnet10t", strides=(8, 16), frozen_through=8, test_size=48, max_size=96,
            train_sizes=(48,), epochs=EPOCHS, batch_size=4, max_detections=3, threads=1, queries=12, denoising=0,
            transformer_width=32, attention_heads=4, feedforward=16, encoder_layers=1, decoder_layers=2,
            optimizer="sgd", lr=1e-3,
        ),
        ("pgt",),
    ),
    "wsis": (WsisStage(), WsisConfig(**DETECTOR, mask_channels=8, mask_source="given"), ("pgt",)),
}  # fmt: skip


def run_all(data: Path, out: Path, inputs: Mapping[str, Path]) -> None:
    """Run each stage on `shapes_train` and write `<out>/<stage>.json`: what its metrics said."""
    for name, (stage, config, wanted) in STAGES.items():
        lines: list[dict[str, Any]] = []
        seed_everything(0)
        context = StageContext(
            split=open_split("shapes_train", data),
            run=out,
            out=out / name,
            inputs={key: inputs[key] for key in wanted},
            metrics_fn=lambda values, lines=lines: lines.append(dict(values)),  # type: ignore[misc]
            log_every=1,
        )
        context.out.mkdir(parents=True, exist_ok=True)
        stage.plan(config, context)
        stage.run(config, context)
        if processes.is_main():
            (out / f"{name}.json").write_text(json.dumps(lines))


def main() -> None:
    """As the usage says; the trunk is random and the drawn set is used as it lies there."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    patch()
    processes.join("cpu")
    run_all(data, out, {"proposals": data / "proposals.h5", "pgt": data / "pgt.json"})
    processes.leave()


def patch() -> None:
    """No downloads (the trunk of `cam` and `wsod` is embedded), and the small drawn set instead of the full one."""

    def random_trunk(*arguments: Any, **options: Any) -> Any:
        return build_trunk(*arguments, **options | {"pretrained": False})

    torch.set_num_threads(1)
    setattr(faster_rcnn, "build_trunk", random_trunk)  # noqa: B010
    setattr(detr, "build_trunk", random_trunk)  # noqa: B010
    setattr(shapes, "ensure_shapes", lambda root: root / "shapes")  # noqa: B010


if __name__ == "__main__":
    main()
