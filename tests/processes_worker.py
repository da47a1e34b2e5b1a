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

from stages.cam.config import CamConfig, HybridSettings
from stages.cam.stage import CamStage
from stages.core.backbones.timm_backbones import build_backbone
from stages.core.config import StageConfig
from stages.core.datasets.catalog import open_split
from stages.core.datasets.shapes import dataset as shapes
from stages.core.detectors import detr
from stages.core.detectors.two_stage import faster_rcnn
from stages.core.runtime import processes
from stages.core.runtime.seeding import seed_everything
from stages.core.spec import Stage, StageContext
from stages.retrain.config import RetrainConfig, RtDetrSettings
from stages.retrain.stage import RetrainStage
from stages.wsis.config import WsisConfig
from stages.wsis.stage import WsisStage
from stages.wsod.config import WsodConfig
from stages.wsod.stage import WsodStage

EPOCHS = 5
SHARED: dict[str, Any] = {
    "backbone": "resnet10t", "out_strides": (8, 16), "freeze_through_stride": 8, "test_short_side": 48, "max_size": 96,
    "train_short_sides": (32, 48), "epochs": EPOCHS, "batch_size": 4, "detections_per_image": 3, "num_threads": 1,
}  # fmt: skip
TWO_STAGE: dict[str, Any] = {
    "fpn_channels": 8, "anchor_sizes": (16, 32), "rpn_pre_nms_top_n": 20, "box_batch_size_per_image": 8, "fc_dim": 16,
}  # fmt: skip
FASTER_RCNN = SHARED | {"faster_rcnn": TWO_STAGE}
MASK_RCNN = SHARED | {"mask_rcnn": TWO_STAGE | {"mask_channels": 8}}
STAGES: dict[str, tuple[Stage[Any], StageConfig, tuple[str, ...]]] = {
    "cam": (
        CamStage(),
        CamConfig(
            hybrid=HybridSettings(embed_dim=16, num_heads=2, depth=2),
            epochs=EPOCHS, batch_size=4, train_crop_size=32,
            max_size=64,
            tta_scales=(1.0,), num_threads=1,
        ),
        (),
    ),
    "wsod": (
        WsodStage(),
        WsodConfig(
            method="mist", pretrained=False, fused_channels=8, pooler_resolution=2, fc_dim=16,
            train_short_sides=(32, 48),
            test_short_side=32, epochs=EPOCHS, batch_size=4, num_threads=1, ema_decay=0.9,
        ),
        ("proposals",),
    ),
    "retrain": (RetrainStage(), RetrainConfig(**FASTER_RCNN, roi_drop="paper", tau_cls=1.0, tau_reg=1.0), ("pgt",)),
    "percentile": (
        RetrainStage(),
        RetrainConfig(
            **FASTER_RCNN | {"train_short_sides": (48,), "hflip_prob": 0.0},
            roi_drop="percentile", tau_cls=0.3, tau_reg=0.3,
        ),
        ("pgt",),
    ),
    # SGD: Adam makes whole steps of the rounding of tiny gradients, and then other queries are chosen and matched.
    "detr": (
        RetrainStage(),
        RetrainConfig(
            **SHARED | {"train_short_sides": (48,)}, architecture="rt-detr", optimizer="sgd", lr=1e-3,
            rt_detr=RtDetrSettings(
                num_queries=12, num_denoising=0, d_model=32, num_heads=4, dim_feedforward=16, num_encoder_layers=1,
                num_decoder_layers=2,
            ),
        ),
        ("pgt",),
    ),
    "wsis": (WsisStage(), WsisConfig(**MASK_RCNN, mask_source="given"), ("pgt",)),
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
    """As the usage says; the backbone is random and the drawn set is used as it lies there."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    patch()
    processes.join("cpu")
    run_all(data, out, {"proposals": data / "proposals.h5", "pgt": data / "pgt.json"})
    processes.leave()


def patch() -> None:
    """No downloads (the backbone of `cam` and `wsod` is embedded), and the small drawn set instead of the full one."""

    def random_backbone(*arguments: Any, **options: Any) -> Any:
        return build_backbone(*arguments, **options | {"pretrained": False})

    torch.set_num_threads(1)
    setattr(faster_rcnn, "build_backbone", random_backbone)  # noqa: B010
    setattr(detr, "build_backbone", random_backbone)  # noqa: B010
    setattr(shapes, "ensure_shapes", lambda root: root / "shapes")  # noqa: B010


if __name__ == "__main__":
    main()
