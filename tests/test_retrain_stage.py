"""`retrain` as a stage: fit and apply on tiny images, refuse what does not fit, resume, repeat, a second round."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.core.artifacts.coco_json import read_dataset, read_results, write_dataset
from stages.core.config import build_config
from stages.core.config.values import format_value
from stages.core.datasets.catalog import open_split
from stages.core.detectors.checkpoints import recorded_view_sizes
from stages.core.detectors.spec import DetectorSpec
from stages.core.errors import ConfigError, InputError, SchemaError, TrainingDivergedError
from stages.core.spec import StageContext
from stages.core.structures.detections import Detections
from stages.retrain.config import RetrainConfig
from stages.retrain.roi_drop import DropMeter
from stages.retrain.stage import RetrainStage, large_enough
from stages.wsis.config import WsisConfig
from stages.wsis.stage import WsisStage
from tests.datasets_builders import HEIGHT, SCENES, WIDTH, make_voc
from tests.detector_builders import MASKED, TINY, TWO_STAGE, context, count_detector_calls, run, write_pgt
from tests.predict_builders import finished

pytestmark = pytest.mark.usefixtures("random_backbones")


def test_retrain__fit_then_apply_on_train_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []
    train = context(tmp_path, "train", "retrain")
    train.inputs = {"pgt": write_pgt(tmp_path, train.split, skip=("img_3",))}
    train.metrics_fn = lambda values: lines.append(dict(values))
    counts = run(RetrainStage(), RetrainConfig(**TINY), train)
    assert counts["training_images"] == 2  # the image without a pseudo box is left out
    assert counts["pseudo_boxes"] == 4
    assert {"loss_classifier", "loss_box_reg", "dropped_share"} <= set(lines[0])
    found = read_results(train.out / "detections.json", train.split)
    assert counts["detections"] == sum(len(one) for one in found.values()) > 0
    checkpoint = train.out / "detector.safetensors"
    test = context(tmp_path, "test", "retrain", checkpoint=checkpoint)
    counts = run(RetrainStage(), RetrainConfig(**TINY), test)
    assert set(counts) == {"detections"}
    plain = read_results(test.out / "detections.json", test.split)
    assert plain.keys() == {"img_4", "img_5"}
    views = context(tmp_path, "test", "views", checkpoint=checkpoint)
    run(RetrainStage(), RetrainConfig(**TINY, tta=True, tta_short_sides=(24, 48)), views)
    merged = read_results(views.out / "detections.json", views.split)
    assert merged.keys() == plain.keys()
    assert any(not np.array_equal(merged[i].boxes_xyxy, plain[i].boxes_xyxy) for i in plain)
    # Whoever applies a checkpoint need not repeat the settings that trained it.
    finished(train.out, "retrain", (checkpoint.name,), config={"tta_short_sides": [24, 48]})
    known = context(tmp_path, "test", "known", checkpoint=checkpoint)
    calls = count_detector_calls(monkeypatch)
    run(RetrainStage(), RetrainConfig(**TINY, tta=True), known)
    assert calls == {"read_metadata": 1, "build": 1, "load_tensors": 1}
    assert (known.out / "detections.json").read_bytes() == (views.out / "detections.json").read_bytes()


def test_retrain__views_are_those_of_the_training(tmp_path: Path) -> None:
    checkpoint = tmp_path / "retrain" / "detector.safetensors"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"")
    ours = RetrainConfig(train_short_sides=(32, 48), tta=True)
    assert ours.view_sizes(recorded_view_sizes(checkpoint)) == (32, 48), "nothing is known of the training"
    finished(
        checkpoint.parent,
        "retrain",
        (checkpoint.name,),
        config={"tta_short_sides": [], "train_short_sides": [96, 128]},
    )
    assert ours.view_sizes() == (32, 48)
    assert ours.view_sizes(recorded_view_sizes(checkpoint)) == (96, 128)
    assert RetrainConfig(tta=True, tta_short_sides=(64,)).view_sizes(recorded_view_sizes(checkpoint)) == (64,)
    assert RetrainConfig().view_sizes(recorded_view_sizes(checkpoint)) == ()
    finished(
        checkpoint.parent,
        "retrain",
        (checkpoint.name,),
        config={"tta_short_sides": [80], "train_short_sides": [96]},
    )
    assert ours.view_sizes(recorded_view_sizes(checkpoint)) == (80,)


def test_retrain__same_seed_same_bytes_and_resume_equals_uninterrupted(tmp_path: Path) -> None:
    results = []
    for name in ("first", "second"):
        at = context(tmp_path, "train", name)
        at.inputs = {"pgt": write_pgt(tmp_path, at.split)}
        run(RetrainStage(), RetrainConfig(**TINY), at)
        results.append(
            (at.out / "detector.safetensors").read_bytes() + (at.out / "detections.json").read_bytes()
        )
    assert results[0] == results[1]

    stopped = context(tmp_path, "train", "stopped")
    stopped.inputs = {"pgt": write_pgt(tmp_path, stopped.split)}
    steps: list[int] = []

    def interrupt() -> None:
        steps.append(1)
        if len(steps) == 1:
            raise InputError("stop now")

    stopped.interrupted_fn = interrupt
    with pytest.raises(InputError, match="stop now"):
        run(RetrainStage(), RetrainConfig(**TINY), stopped)
    assert not (stopped.out / "detector.safetensors").exists()
    stopped.resume, stopped.loaders = True, 2
    run(RetrainStage(), RetrainConfig(**TINY), stopped)
    resumed = (stopped.out / "detector.safetensors").read_bytes() + (
        stopped.out / "detections.json"
    ).read_bytes()
    assert resumed == results[0]
    # Stopped after the fit: the counts are still those of a run in one go.
    (stopped.out / "detections.json").unlink()
    counts = run(RetrainStage(), RetrainConfig(**TINY), stopped)
    assert (counts["training_images"], counts["pseudo_boxes"]) == (3, 5)
    assert results[0].endswith((stopped.out / "detections.json").read_bytes())


@pytest.mark.parametrize("stage", ["retrain", "wsis"])
def test_accumulation__reproduces_the_batch(tmp_path: Path, stage: str) -> None:
    weights = []
    # Adam would turn the rounding of a gradient that is nearly zero into a step of full length.
    common = {
        "optimizer": "sgd",
        "lr": 0.01,
        "epochs": 4,
        "train_short_sides": (32, 40),
        "warmup_fraction": 0.0,
    }
    for name, cut in (("whole", (3, 1)), ("cut", (1, 3))):
        at = context(tmp_path, "train", name)
        at.inputs = {"pgt": write_pgt(tmp_path, at.split, masked=stage == "wsis")}
        settings = common | {"batch_size": cut[0], "grad_accum_steps": cut[1]}
        if stage == "retrain":
            run(RetrainStage(), RetrainConfig(**TINY | settings), at)
            weights.append(load_file(at.out / "detector.safetensors"))
        else:
            run(WsisStage(), WsisConfig(**MASKED | settings, mask_source="given"), at)
            weights.append(load_file(at.out / "segmenter.safetensors"))
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], rtol=1e-4, atol=1e-5), name


def test_retrain__drop_changes_the_detector(tmp_path: Path) -> None:
    weights = []
    for name, drop in (("off", "off"), ("on", "paper")):
        at = context(tmp_path, "train", name)
        at.inputs = {"pgt": write_pgt(tmp_path, at.split)}
        settings = TINY | {"roi_drop": drop, "tau_cls": 0.0, "tau_reg": 0.0, "roi_drop_start_fraction": 0.0}
        run(RetrainStage(), RetrainConfig(**settings), at)
        weights.append((at.out / "detector.safetensors").read_bytes())
    assert weights[0] != weights[1]


def observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int, **settings: Any
) -> tuple[list[list[tuple[int, int]]], list[float]]:
    """(Dropped, foreground) of every call of the rule, pass by pass, and the shares that the lines of metrics have."""
    steps: list[list[tuple[int, int]]] = [[]]
    call, pop = DropMeter.__call__, DropMeter.pop_counts

    def spy_call(meter: DropMeter, cls_R: Tensor, reg_R: Tensor, foreground_R: Tensor) -> Any:
        keep_cls_R, keep_reg_R = call(meter, cls_R, reg_R, foreground_R)
        steps[-1].append((int((keep_cls_R == 0).sum()), int(foreground_R.sum())))
        return keep_cls_R, keep_reg_R

    def spy_pop(meter: DropMeter) -> Any:
        steps.append([])
        return pop(meter)

    monkeypatch.setattr(DropMeter, "__call__", spy_call)
    monkeypatch.setattr(DropMeter, "pop_counts", spy_pop)
    at = context(tmp_path, "train", "retrain")
    at.inputs = {"pgt": write_pgt(tmp_path, at.split)}
    at.log_every = log_every
    shares: list[float] = []
    at.metrics_fn = lambda values: shares.append(values["dropped_share"])
    run(RetrainStage(), RetrainConfig(**TINY | {"tau_cls": 0.0, "tau_reg": 0.0} | settings), at)
    return steps[:-1], shares


def test_retrain__nothing_is_dropped_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shares = observed(tmp_path, monkeypatch, 1, batch_size=1, epochs=2, roi_drop_start_fraction=0.5)
    assert shares == [0.0] * 3 + [1.0] * 3


@pytest.mark.parametrize("cut", [(1, 1), (1, 3)])
def test_retrain__dropped_share_is_of_all_rois_since_the_last_line(
    cut: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "batch_size": cut[0],
        "grad_accum_steps": cut[1],
        "epochs": 4,
        "roi_drop_start_fraction": 0.5,
        "faster_rcnn": TWO_STAGE | {"box_batch_size_per_image": 32},
    }
    steps, shares = observed(tmp_path, monkeypatch, 100, **settings | {"tau_cls": 1.4, "tau_reg": 0.0})
    since = [counts for step in steps[cut[1] :] for counts in step]  # the first move has a line of its own
    dropped, foreground = (sum(column) for column in zip(*since, strict=True))
    assert shares == [0.0, pytest.approx(dropped / foreground)]
    ratios = [d / max(f, 1) for d, f in since]
    assert shares[1] != pytest.approx(sum(ratios) / len(ratios)), "the images differ in their RoIs"


@pytest.mark.parametrize(("drop", "calls"), [("paper", 2), ("normalized", 1), ("percentile", 1)])
def test_retrain__rules_that_compare_see_the_whole_batch(
    drop: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the rule is asked once for every size of image in the batch."""
    steps, _ = observed(
        tmp_path, monkeypatch, 1, roi_drop=drop, batch_size=3, epochs=4, train_short_sides=(32, 64)
    )
    assert max(len(step) for step in steps) == calls


def test_retrain__unreadable_image_is_recorded_and_replaced(tmp_path: Path) -> None:
    at = context(tmp_path, "train", "retrain")
    at.inputs = {"pgt": write_pgt(tmp_path, at.split)}
    at.split.image_path("img_2").write_bytes(b"")
    run(RetrainStage(), RetrainConfig(**TINY), at)
    assert list(at.failures.entries) == ["img_2"]
    assert (at.out / "detector.safetensors").is_file()


def test_retrain__a_class_without_any_pseudo_box_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("weaksam"), "propagate", True)
    at = context(tmp_path, "train", "retrain")
    at.inputs = {"pgt": write_pgt(tmp_path, at.split, skip=("img_3",))}
    with caplog.at_level(logging.WARNING, logger="weaksam"):
        run(RetrainStage(), RetrainConfig(**TINY | {"epochs": 1}), at)
    assert "no pseudo box of bird" in caplog.text


def test_retrain__no_pseudo_box_at_all(tmp_path: Path) -> None:
    at = context(tmp_path, "train", "retrain")
    at.inputs = {"pgt": write_pgt(tmp_path, at.split, skip=tuple(SCENES["train"]))}
    with pytest.raises(InputError, match="pseudo box"):
        run(RetrainStage(), RetrainConfig(**TINY), at)


def test_retrain__not_finite_loss_names_step_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = context(tmp_path, "train", "retrain")
    at.inputs = {"pgt": write_pgt(tmp_path, at.split)}
    import stages.core.detectors.two_stage.roi_heads as roi_heads

    def broken(*arguments: Any) -> tuple[Tensor, Tensor]:
        nan = torch.full((len(arguments[2]),), float("nan"), requires_grad=True)
        return nan, nan

    monkeypatch.setattr(roi_heads, "roi_losses", broken)
    with pytest.raises(TrainingDivergedError, match="img_"):
        run(RetrainStage(), RetrainConfig(**TINY), at)


def test_retrain__checkpoint_of_other_classes(tmp_path: Path) -> None:
    train = context(tmp_path, "train", "retrain")
    train.inputs = {"pgt": write_pgt(tmp_path, train.split)}
    run(RetrainStage(), RetrainConfig(**TINY), train)
    other = {"test": {"img_9": SCENES["test"]["img_4"]}, "train": {"img_8": SCENES["train"]["img_3"]}}
    make_voc(tmp_path / "data", "other", other)
    split = open_split("other_test", tmp_path / "data")
    checkpoint = train.out / "detector.safetensors"
    at = StageContext(split=split, run=tmp_path, out=tmp_path / "o", inputs={"checkpoint": checkpoint})
    with pytest.raises(SchemaError, match="classes"):
        RetrainStage().plan(RetrainConfig(**TINY), at)


@pytest.mark.parametrize("name", ["tau_cls", "tau_reg"])
@pytest.mark.parametrize("drop", ["normalized", "percentile"])
def test_retrain__relative_thresholds_must_be_shares(drop: str, name: str) -> None:
    shares = {"tau_cls": 0.98, "tau_reg": 1.0}
    layers: list[tuple[str, dict[str, Any]]] = [("recipe", {"tau_cls": 5.0, "tau_reg": 5.0})]
    layers.append(("--set", {"roi_drop": drop, **shares}))
    assert build_config(RetrainConfig, layers).roi_drop == drop, "judged when all layers are merged"
    with pytest.raises(ConfigError, match=rf"roi_drop = {drop} needs {name} in \[0, 1\]"):
        build_config(RetrainConfig, [*layers, ("flags", {name: 1.5})])


def test_retrain__checkpoint_of_another_detector(tmp_path: Path) -> None:
    from stages.core.detectors.two_stage.faster_rcnn import build_detector, save_detector

    test = context(tmp_path, "test", "retrain", checkpoint=tmp_path / "s.safetensors")
    spec = WsisConfig(**MASKED).detector_spec()
    assert isinstance(spec, DetectorSpec)
    save_detector(
        tmp_path / "s.safetensors", build_detector(spec, test.split.classes, False), spec, test.split.classes
    )
    with pytest.raises(SchemaError, match="mask-rcnn"):
        RetrainStage().plan(RetrainConfig(), test)


def test_retrain__low_scores_are_written_on_the_train_split_alone(tmp_path: Path) -> None:
    """A second round of pgt must find a box for every tag, however unsure the detector is."""
    settings = TINY | {"epochs": 1, "score_thresh": 0.6, "detections_per_image": 30, "nms_thresh": 0.99}
    train = context(tmp_path, "train", "retrain")
    train.inputs = {"pgt": write_pgt(tmp_path, train.split)}
    run(RetrainStage(), RetrainConfig(**settings, train_score_thresh=0.0), train)
    found = read_results(train.out / "detections.json", train.split)
    assert min(one.scores.min() for one in found.values()) < 0.6
    test = context(tmp_path, "test", "retrain", checkpoint=train.out / "detector.safetensors")
    run(RetrainStage(), RetrainConfig(**settings), test)
    for one in read_results(test.out / "detections.json", test.split).values():
        assert (one.scores >= 0.6).all()


def test_second_round__from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pgt from the detections of retrain, in a run of its own; again with --overwrite; then apply and predict."""
    from tests.command_builder import run as command

    monkeypatch.chdir(tmp_path)
    make_voc(tmp_path / "data")
    split = open_split("tiny_train", tmp_path / "data")
    first = tmp_path / "runs" / "first"
    (first / "pgt" / "tiny_train").mkdir(parents=True)
    write_pgt(tmp_path, split).rename(first / "pgt" / "tiny_train" / "pgt.json")
    finished(first / "pgt" / "tiny_train", "pgt", ("pgt.json",))
    tiny = {**TINY, "epochs": 1, "detections_per_image": 60, "nms_thresh": 0.99, "train_score_thresh": 0.0}
    config = RetrainConfig.model_validate(tiny)
    settings = [f"--set={name}={format_value(value)}" for name, value in config.named_values()]
    common = ["--device", "cpu", "--workers", "0"]
    assert command("-q", "retrain", "--split", "tiny_train", "--run", "runs/first", *common, *settings) == 0
    detections = "runs/first/retrain/tiny_train/detections.json"
    again: list[str] = []
    for _ in range(2):
        second = ["--run", "runs/second", *common]
        assert command("-q", "pgt", "--split", "tiny_train", *second, "--detections", detections, *again) == 0
        assert command("-q", "retrain", "--split", "tiny_train", *second, *settings, *again) == 0
        again = ["--overwrite"]
    pseudo = read_dataset(tmp_path / "runs" / "second" / "pgt" / "tiny_train" / "pgt.json", split).boxes
    for image_id in split.ids:
        assert set(pseudo[image_id].classes.tolist()) == set(split.tags(image_id)), "a box for every tag"
    assert command("-q", "retrain", "--split", "tiny_test", *second, *settings) == 0
    assert (tmp_path / "runs" / "second" / "retrain" / "tiny_test" / "detections.json").is_file()
    image = str(split.image_path("img_1"))
    assert command("-q", "predict", image, *second, "--json") == 0
    capsys.readouterr()
    # What the first round was made from has changed: its detections are stale in the second round, too.
    other = {image_id: Detections.empty() for image_id in split.ids}
    write_dataset(
        first / "pgt" / "tiny_train" / "pgt.json", split, other, dict.fromkeys(other, (HEIGHT, WIDTH))
    )
    finished(first / "pgt" / "tiny_train", "pgt", ("pgt.json",))
    assert command("-q", "pgt", "--split", "tiny_train", *second, "--detections", detections, *again) == 3
    assert "has changed since" in capsys.readouterr().err


def test_large_enough__both_sides_count() -> None:
    boxes = np.array([[0, 0, 32, 40], [5, 5, 36.9, 60], [1, 1, 50, 20]], np.float32)
    found = Detections(boxes, np.array([0, 1, 2]), np.ones(3, np.float32))
    kept = large_enough({"a": found, "b": Detections.empty()}, 32.0)
    assert kept["a"].classes.tolist() == [0]
    assert len(kept["b"]) == 0
    assert large_enough({"a": found}, 0.0)["a"].classes.tolist() == [0, 1, 2]
