"""`retrain` with the detection transformers: fit, resume, apply, refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.core.artifacts.coco_json import read_results
from stages.core.errors import EnvironmentFault, InputError, TrainingDivergedError
from stages.retrain.config import RetrainConfig
from stages.retrain.stage import RetrainStage
from tests.detector_builders import SHARED, context, run, write_pgt

pytestmark = pytest.mark.usefixtures("random_backbones")

SIZES: dict[str, Any] = {
    "d_model": 32, "num_heads": 4, "dim_feedforward": 16, "num_encoder_layers": 1, "num_decoder_layers": 2,
    "num_queries": 5,
}  # fmt: skip
GROUPS = {
    "rt-detr": {"rt_detr": SIZES | {"num_denoising": 4}},
    "deformable-detr": {"deformable_detr": SIZES},
    "dino": {"dino": SIZES | {"num_denoising": 4}},
}


def settings(architecture: str, **changes: Any) -> RetrainConfig:
    values = SHARED | {"architecture": architecture, "roi_drop_start_fraction": 0.0} | GROUPS[architecture]
    return RetrainConfig.model_validate(values | changes)


DETRS = ("rt-detr", "deformable-detr", "dino")


@pytest.mark.parametrize("architecture", DETRS)
def test_retrain__detr_fits_resumes_and_applies(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    config = settings(architecture, tau_cls=0.0, tau_reg=0.0)
    lines: list[dict[str, Any]] = []
    results = []
    for name in ("whole", "stopped"):
        at = context(tmp_path, "train", name)
        at.inputs = {"pgt": write_pgt(tmp_path, at.split)}
        at.metrics_fn = lambda values: lines.append(dict(values))
        if name == "stopped":
            stops = iter([True])

            def interrupt(stops: Any = stops) -> None:
                if next(stops, False):
                    raise InputError("stop now")

            at.interrupted_fn = interrupt
            with pytest.raises(InputError, match="stop now"):
                run(RetrainStage(), config, at)
            at.resume, at.loaders = True, 1
        counts = run(RetrainStage(), config, at)
        assert counts["training_images"] == 3
        results.append(
            (at.out / "detector.safetensors").read_bytes() + (at.out / "detections.json").read_bytes()
        )
    assert results[0] == results[1], "resumed from the state equals uninterrupted"
    assert lines[0]["dropped_share"] == 1.0, "thresholds of 0 drop every matched query"
    assert {"loss_class", "loss_box", "loss_giou"} <= set(lines[0])
    # The test split takes what the checkpoint says, whatever the settings are.
    checkpoint = tmp_path / "whole" / "train" / "detector.safetensors"
    test = context(tmp_path, "test", "retrain", checkpoint=checkpoint)
    run(RetrainStage(), RetrainConfig(), test)
    found = read_results(test.out / "detections.json", test.split)
    assert found.keys() == {"img_4", "img_5"}
    assert all(len(one) <= 3 for one in found.values())


def test_retrain__detr_on_any_images(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.predict_builders import predict

    at = context(tmp_path, "train", "retrain")
    at.inputs = {"pgt": write_pgt(tmp_path, at.split)}
    run(RetrainStage(), settings("rt-detr", epochs=1), at)
    detector, out = at.out / "detector.safetensors", tmp_path / "found"
    image = at.split.image_path("img_1")
    assert predict(image, "--detector", detector, "--out", out, "--score-thresh", 0) == 0
    data = json.loads((out / "predictions.json").read_text())
    assert [category["name"] for category in data["categories"]] == ["bird", "cat", "dog"]
    assert len(data["annotations"]) == 3


def test_retrain__detr_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    at = context(tmp_path, "train", "retrain")
    at.inputs = {"pgt": write_pgt(tmp_path, at.split)}
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentFault, match=r"weaksam\[hf\]"):
        RetrainStage().plan(RetrainConfig(architecture="deformable-detr"), at)
    RetrainStage().plan(RetrainConfig(), at)  # Faster R-CNN needs no extra


@pytest.mark.parametrize("architecture", DETRS)
def test_retrain__detr_diverged_loss_names_step_and_images(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    at = context(tmp_path, "train", "retrain")
    at.inputs = {"pgt": write_pgt(tmp_path, at.split)}
    with pytest.raises(TrainingDivergedError, match="img_"):
        run(
            RetrainStage(),
            settings(architecture, epochs=40, lr=1e30, clip_grad_norm=0),
            at,
        )
