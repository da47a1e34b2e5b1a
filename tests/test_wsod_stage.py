"""`wsod` as a stage: fit and apply on tiny images, what is filtered, repeatability, resume, wrong checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from safetensors.torch import load_file

from stages.core.artifacts.coco_json import read_results
from stages.core.artifacts.manifest import Manifest
from stages.core.artifacts.schemas import PROPOSALS
from stages.core.artifacts.table import read_table, write_table
from stages.core.datasets.catalog import open_split
from stages.core.datasets.split import WeakSplit
from stages.core.errors import InputError, PreemptedError, SchemaError, TrainingDivergedError
from stages.core.runtime.execute import execute
from stages.core.runtime.request import Request
from stages.core.spec import StageContext
from stages.core.weights.checkpoints import save_weights
from stages.wsod import fitting, stage, viz
from stages.wsod.batches import WeakData
from stages.wsod.config import WsodConfig
from stages.wsod.model.detector import WsodDetector
from stages.wsod.proposals import ProposalSource
from stages.wsod.stage import WsodStage
from tests.datasets_builders import SCENES, WIDTH, make_voc
from tests.wsod_builders import TINY, write_proposals


def context(
    tmp_path: Path, subset: str, name: str = "wsod", counts: dict[str, int] | None = None
) -> StageContext:
    if not (tmp_path / "data" / "tiny").exists():
        make_voc(tmp_path / "data")
    out = tmp_path / name / subset
    out.mkdir(parents=True, exist_ok=True)
    proposals = write_proposals(
        tmp_path / f"{name}-{subset}.h5", dict.fromkeys(SCENES[subset], 7) | (counts or {})
    )
    split = open_split(f"tiny_{subset}", tmp_path / "data")
    return StageContext(split=split, run=tmp_path, out=out, inputs={"proposals": proposals})


def run(at: StageContext, **changes: Any) -> dict[str, int | float]:
    config = WsodConfig.model_validate(TINY | changes)
    WsodStage().plan(config, at)
    return WsodStage().run(config, at)


@pytest.mark.parametrize("method", ["wsddn", "oicr", "mist"])
def test_wsod__fit_then_apply_on_train_and_test(tmp_path: Path, method: str) -> None:
    train = context(tmp_path, "train")
    counts = run(train, method=method)
    assert counts["training_images"] == 3
    found = read_results(train.out / "detections.json", train.split)
    assert counts["detections"] == sum(len(one) for one in found.values()) > 0
    test = context(tmp_path, "test")
    test.inputs = {**test.inputs, "checkpoint": train.out / "detector.safetensors"}
    assert set(run(test, tta=True)) == {"detections"}
    found = read_results(test.out / "detections.json", test.split)
    assert all(len(one) for one in found.values())
    assert max(one.boxes_xyxy[:, 2].max() for one in found.values()) <= WIDTH
    pictures = viz.draw(test.out, test.split, test.split.ids, tmp_path / "viz")
    assert [path.name for path in pictures] == ["img_4.png", "img_5.png"]


@pytest.mark.parametrize(("batch_size", "accumulate"), [(2, 2), (1, 4)])
def test_wsod__accumulation_reproduces_the_batch(tmp_path: Path, batch_size: int, accumulate: int) -> None:
    weights = []
    for name, cut in (("whole", (4, 1)), ("cut", (batch_size, accumulate))):
        at = context(tmp_path, "train", name)
        # Adam would turn the rounding of a gradient that is nearly zero into a step of full length.
        changes = {"optimizer": "sgd", "lr": 0.01, "epochs": 8, "ema_decay": 0.9}
        run(at, method="mist", batch_size=cut[0], grad_accum_steps=cut[1], **changes)
        weights.append(load_file(at.out / "detector.safetensors"))
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], rtol=1e-4, atol=2e-5), name


def test_wsod__the_dropper_of_the_two_step_form_learns(tmp_path: Path) -> None:
    at = context(tmp_path, "train")
    lines: list[dict[str, Any]] = []
    at.log_every, at.metrics_fn = 1, lambda values: lines.append(dict(values))
    dropping = {
        "dropblock": True,
        "dropblock_form": "two_step",
        "dropblock_max_fraction": 0.9,
        "dropblock_weight": 1.0,
    }
    run(at, **dropping)
    assert all(0 <= line["dropped"] < 1 for line in lines if line.get("phase") == "train")
    trained = load_file(at.out / "detector.safetensors")
    torch.manual_seed(at.seed)
    fresh = WsodDetector(WsodConfig.model_validate(TINY | dropping), 3).state_dict()
    moved = [name for name in fresh if "dropblock" in name and not torch.equal(fresh[name], trained[name])]
    assert "dropblock.shortcut.weight" in moved


TOP1 = {"method": "oicr", "oicr": {"miner": "top1"}}
FIRST, SECOND = "two_stream.det_stream.weight", "refinement.classifiers.1.bias"


@pytest.mark.parametrize(
    ("changes", "poisoned"),
    [
        ({"method": "wsddn"}, FIRST),
        (TOP1, FIRST),
        (TOP1, SECOND),
        ({"method": "oicr"}, FIRST),
        ({"method": "oicr"}, SECOND),
        ({"method": "mist"}, FIRST),
        ({"method": "mist"}, SECOND),
    ],
)
def test_wsod__a_training_that_diverges_says_so_and_keeps_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], poisoned: str
) -> None:
    def build(*arguments: Any) -> WsodDetector:
        model = WsodDetector(*arguments)
        dict(model.named_parameters())[poisoned].data.flatten()[0] = float("nan")
        return model

    monkeypatch.setattr(fitting, "WsodDetector", build)
    at = context(tmp_path, "train")
    with pytest.raises(TrainingDivergedError, match=r"not finite at step 0(.|\n)*images \['img_"):
        run(at, **changes, batch_size=3)
    assert (at.out / "state" / "train.pt").is_file()


@pytest.mark.parametrize("method", ["wsddn", "oicr", "mist"])
def test_wsod__a_rate_far_too_high_ends_as_diverged(tmp_path: Path, method: str) -> None:
    at = context(tmp_path, "train")
    # Decay alone then multiplies the backbone's weights by -9 at every step.
    wild = {
        "optimizer": "sgd",
        "lr": 1.0,
        "backbone_lr_factor": 10.0,
        "weight_decay": 1.0,
        "warmup_fraction": 0.0,
    }
    with pytest.raises(TrainingDivergedError, match="a lower learning rate"):
        run(
            at,
            **wild,
            method=method,
            freeze_through_stride=0,
            clip_grad_norm=0.0,
            epochs=40,
            train_short_sides=(32,),
        )
    assert (at.out / "state" / "train.pt").is_file()


def test_wsod__images_without_proposals_are_filtered_and_named(tmp_path: Path) -> None:
    train = context(tmp_path, "train", counts={"img_2": 0})
    assert run(train)["training_images"] == 2
    assert train.failures.entries == {"img_2": "no usable proposal"}
    assert read_results(train.out / "detections.json", train.split)["img_2"].scores.size == 0


def weak_data(at: StageContext, **changes: Any) -> WeakData:
    config = WsodConfig.model_validate(TINY | changes)
    return WeakData(at.split, ProposalSource(at.input("proposals"), config), config, at.seed, at.failures)


def test_weak_data__tags_are_tensors_that_travel_with_the_batch(tmp_path: Path) -> None:
    at = context(tmp_path, "train")
    batch = weak_data(at).load(at.split.ids, 0)
    assert [tuple(tags.tolist()) for tags in batch.bags.tags] == [at.split.tags(i) for i in at.split.ids]
    moved = batch.to("meta")
    for part in (*moved.images, *moved.bags.boxes_xyxy, *moved.bags.tags):
        assert part.device.type == "meta"
    assert [tags.dtype for tags in moved.bags.tags] == [torch.int64] * 3


def test_weak_data__every_epoch_draws_its_own_augmentation(tmp_path: Path) -> None:
    at = context(tmp_path, "train")
    ids = at.split.ids[:1]
    data = weak_data(at, train_short_sides=(32, 40), hflip_prob=0.5, color_jitter=0.5)
    images = [data.load(ids, epoch).images[0] for epoch in range(12)]
    assert torch.equal(images[3], data.load(ids, 3).images[0])
    assert len({tuple(image.shape) for image in images}) == 2
    assert len({image.sum().item() for image in images}) == 12
    plain = weak_data(at, train_short_sides=(32,), hflip_prob=0.5, color_jitter=0.0)
    assert len({plain.load(ids, epoch).images[0][:, :, 0].sum().item() for epoch in range(12)}) == 2


def test_wsod__no_proposals_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="both a tag and a proposal"):
        run(context(tmp_path, "train", counts=dict.fromkeys(SCENES["train"], 0)))


def test_wsod__unreadable_image_is_recorded_and_replaced(tmp_path: Path) -> None:
    train = context(tmp_path, "train")
    train.split.image_path("img_3").write_bytes(b"")
    run(train)
    assert list(train.failures.entries) == ["img_3"]


def test_wsod__same_seed_same_bytes_and_resume_equals_uninterrupted(tmp_path: Path) -> None:
    results = []
    for name in ("first", "second"):
        at = context(tmp_path, "train", name)
        run(at)
        results.append([(at.out / f).read_bytes() for f in ("detector.safetensors", "detections.json")])
    assert results[0] == results[1]

    stopped = context(tmp_path, "train", "stopped")
    steps: list[int] = []

    def interrupt() -> None:
        steps.append(1)
        if len(steps) == 4:
            raise InputError("stop now")

    stopped.interrupted_fn = interrupt
    with pytest.raises(InputError, match="stop now"):
        run(stopped)
    assert not (stopped.out / "detector.safetensors").exists()
    stopped.resume = True
    run(stopped)
    resumed = [(stopped.out / f).read_bytes() for f in ("detector.safetensors", "detections.json")]
    assert resumed == results[0]


@pytest.mark.parametrize("when", ["in the fit", "after the fit"])
def test_wsod__what_was_left_out_does_not_depend_on_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    make_voc(tmp_path / "data")
    plain = WeakSplit.tags
    monkeypatch.setattr(WeakSplit, "tags", lambda split, i: () if i == "img_1" else plain(split, i))
    proposals = write_proposals(tmp_path / "p.h5", dict.fromkeys(SCENES["train"], 7) | {"img_2": 0})
    config = WsodConfig.model_validate(TINY)

    def manifest(name: str, **changes: Any) -> Manifest | None:
        request = Request("tiny_train", tmp_path / name, tmp_path / "data", overrides={"proposals": proposals},
                          show_progress=False, max_failures="100%", **changes)  # fmt: skip
        return execute(WsodStage(), config, request).manifest

    def stop(*_: Any) -> None:
        raise PreemptedError("stopped")

    whole = manifest("whole")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "fit_detector" if when == "in the fit" else "detect_split", stop)
        with pytest.raises(PreemptedError):
            manifest("stopped")
    resumed = manifest("stopped", resume=True)
    assert whole is not None
    assert resumed is not None
    assert [entry["id"] for entry in whole.failures] == ["img_2"], "an image that shows nothing is a negative"
    assert resumed.failures == whole.failures
    assert resumed.counts == whole.counts
    assert whole.counts["training_images"] == 2


def test_wsod__settings_other_than_the_checkpoints_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("weaksam"), "propagate", True)
    train, test = context(tmp_path, "train"), context(tmp_path, "test")
    run(train, method="oicr", quality_power=0.0)
    test.inputs = {**test.inputs, "checkpoint": train.out / "detector.safetensors"}

    def told(**changes: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level("WARNING", "weaksam"):
            run(test, **changes)
        return list(
            {id(r): r.getMessage() for r in caplog.records if "checkpoint" in r.getMessage()}.values()
        )

    # Training settings and test-time augmentation are nobody's mistake.
    assert told(method="oicr", quality_power=0.0, lr=0.5, tta=True) == []
    (message,) = told(method="mist", test_short_side=40)
    assert "in use: test_short_side 40 (checkpoint: 32), quality_power 1.0 (checkpoint: 0.0)" in message
    assert "not in use: method 'mist' (checkpoint: 'oicr')" in message
    monkeypatch.setattr(stage, "is_main", lambda: False)
    assert told(test_short_side=40) == []


def test_wsod__wrong_checkpoint(tmp_path: Path) -> None:
    test = context(tmp_path, "test")
    model = WsodDetector(WsodConfig.model_validate(TINY), 3)
    for metadata in (
        {"kind": "faster-rcnn", "classes": list(test.split.classes)},
        {
            "kind": "wsod",
            "classes": ["a", "b", "c"],
            "config": WsodConfig.model_validate(TINY).model_dump(mode="json"),
        },
        {"kind": "wsod", "classes": list(test.split.classes), "config": {"method": "magic"}},
    ):
        path = tmp_path / "other.safetensors"
        save_weights(path, model, metadata)
        test.inputs = {**test.inputs, "checkpoint": path}
        with pytest.raises(SchemaError, match=r"wsod detector expected|made for classes|settings"):
            run(test)


EVIDENCE = {
    "evidence_prior": 0.5,
    "evidence_seeding": 0.5,
    "evidence_mining_power": 1.0,
    "evidence_score_power": 1.0,
}


def test_wsod__with_map_evidence(tmp_path: Path) -> None:
    train = context(tmp_path, "train")
    counts = run(train, **EVIDENCE)
    assert counts["images_without_evidence"] == 0
    plain = context(tmp_path, "train", "plain")
    run(plain)
    weights = [load_file(at.out / "detector.safetensors") for at in (train, plain)]
    assert not torch.equal(weights[0][FIRST], weights[1][FIRST])


def test_wsod__proposals_without_evidence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    at = context(tmp_path, "train")
    table = read_table(at.input("proposals"), PROPOSALS).in_memory()
    span = table.span(at.split.ids[0])
    table.columns["evidence_count"][span] = table.columns["evidence_class_count"][span] = 0
    write_table(at.input("proposals"), PROPOSALS, table)
    assert run(at, **EVIDENCE)["images_without_evidence"] == 1
    assert at.split.ids[0] in caplog.text
    table.columns["evidence_count"][:] = table.columns["evidence_class_count"][:] = 0
    write_table(at.input("proposals"), PROPOSALS, table)
    with pytest.raises(InputError, match="no image has map evidence"):
        run(context_of(at), **EVIDENCE)


def context_of(at: StageContext) -> StageContext:
    """The same once more, into a folder of its own."""
    out = at.out.parent / "again"
    out.mkdir()
    return StageContext(split=at.split, run=at.run, out=out, inputs=at.inputs)


def test_wsod__proposals_of_an_older_version(tmp_path: Path) -> None:
    at = context(tmp_path, "train")
    with h5py.File(at.input("proposals"), "r+") as file:
        file.attrs["schema_version"] = 1
    with pytest.raises(SchemaError, match=r"(?s)schema version 1, this weaksam reads 2.*run the stage"):
        run(at)
