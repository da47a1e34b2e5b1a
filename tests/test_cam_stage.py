"""`cam` and `prompt` as stages on a few drawn images: tags only, epochs chosen without boxes, repeatable bytes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.cam.building import build_classifier, load_classifier
from stages.cam.classifier import MultiClassTokenClassifier
from stages.cam.config import CamConfig, HybridSettings
from stages.cam.stage import STAGE as CAM
from stages.cam.training import EpochChoice, held_out_ids, mean_average_precision
from stages.cam.viz import draw as draw_maps
from stages.core.artifacts.schemas import CAMS, PROMPTS
from stages.core.artifacts.table import read_table
from stages.core.datasets.catalog import open_split
from stages.core.datasets.shapes.dataset import write_shapes
from stages.core.errors import ConfigError, GroundTruthForbiddenError, SchemaError, StaleInputError
from stages.core.spec import StageContext
from stages.prompt.config import PromptConfig
from stages.prompt.stage import STAGE as PROMPT
from stages.prompt.viz import draw as draw_points

TINY = CamConfig(
    hybrid=HybridSettings(embed_dim=16, num_heads=2, depth=1),
    pretrained=False, epochs=1, batch_size=2,
    train_crop_size=32, max_size=64,
    tta_scales=(1.0,),
    num_threads=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_shapes(root, {"train": 5, "val": 1, "test": 2})
    return root


@pytest.fixture(autouse=True)
def keep_small_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog would replace this small set by the full one."""
    monkeypatch.setattr("stages.core.datasets.shapes.dataset.ensure_shapes", lambda root: root / "shapes")


def context(data: Path, run: Path, subset: str, stage: str, **inputs: Path) -> StageContext:
    out = run / stage / f"shapes_{subset}"
    out.mkdir(parents=True, exist_ok=True)
    return StageContext(split=open_split(f"shapes_{subset}", data), run=run, out=out, inputs=inputs)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.core.datasets.shapes.dataset.ensure_shapes", lambda root: root / "shapes")
        CAM.run(TINY, context(data, run, "train", "cam"))
    return run / "cam" / "shapes_train"


def test_cam__train_split_maps_the_tags_and_nothing_else(data: Path, trained: Path) -> None:
    split = open_split("shapes_train", data)
    table = read_table(trained / "cams.h5", CAMS)
    assert table.ids == split.ids
    for image_id in split.ids:
        rows = table.rows(image_id)
        assert tuple(np.unique(rows["class_index"]).tolist()) == split.tags(image_id)
        per_class = 2 + TINY.hybrid.num_heads
        assert len(rows["kind"]) == per_class * len(split.tags(image_id))
        assert (rows["value_count"] == rows["grid_h"] * rows["grid_w"]).all()
    assert table.pools["values"].dtype == np.float16
    assert table.pools["values"][:].max() <= 1


def test_cam__same_seed_gives_same_bytes(data: Path, trained: Path, tmp_path: Path) -> None:
    again = context(data, tmp_path, "train", "cam")
    CAM.run(TINY, again)
    for name in CAM.spec.output_names("train"):
        assert (again.out / name).read_bytes() == (trained / name).read_bytes()


def test_cam__test_split_predicts_its_classes_without_tags(data: Path, trained: Path, tmp_path: Path) -> None:
    own = context(data, tmp_path, "test", "cam", checkpoint=trained / "classifier.safetensors")
    with pytest.raises(GroundTruthForbiddenError):
        own.split.tags(own.split.ids[0])
    counts = CAM.run(TINY, own)
    table = read_table(own.out / "cams.h5", CAMS)
    assert table.ids == own.split.ids
    assert all(len(table.rows(image_id)["kind"]) > 0 for image_id in table.ids)
    assert counts["maps"] == table.num_rows
    assert not (own.out / "classifier.safetensors").exists()


def test_cam__given_checkpoint_is_applied_without_training(data: Path, trained: Path, tmp_path: Path) -> None:
    own = context(data, tmp_path, "train", "cam", checkpoint=trained / "classifier.safetensors")
    CAM.run(TINY, own)
    for name in CAM.spec.output_names("train"):
        assert (own.out / name).read_bytes() == (trained / name).read_bytes()


def test_cam__batches_loaded_ahead_train_the_same_bytes(data: Path, trained: Path, tmp_path: Path) -> None:
    own = context(data, tmp_path, "train", "cam")
    own.loaders = 2
    CAM.run(TINY, own)
    name = "classifier.safetensors"
    assert (own.out / name).read_bytes() == (trained / name).read_bytes()


def test_cam__broken_image_is_recorded_and_the_rest_goes_on(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data/shapes/JPEGImages/000002.jpg").write_bytes(b"\xff\xd8 not a picture")
    own = context(tmp_path / "data", tmp_path, "train", "cam")
    CAM.run(TINY, own)
    assert list(own.failures.entries) == ["000002"]
    assert "000002" not in read_table(own.out / "cams.h5", CAMS)


def test_cam_plan__says_what_would_happen_or_what_is_wrong(data: Path, trained: Path, tmp_path: Path) -> None:
    assert "steps" in CAM.plan(TINY, context(data, tmp_path, "train", "cam")).notes[0]
    with pytest.raises(ConfigError, match="cross_layers"):
        CAM.plan(TINY.model_copy(update={"cross_layers": (3,)}), context(data, tmp_path, "train", "cam"))
    wrong = context(data, tmp_path, "test", "cam", checkpoint=trained / "cams.h5")
    with pytest.raises(SchemaError, match="not a weaksam checkpoint"):
        CAM.plan(TINY, wrong)


def test_prompt__points_lie_in_their_images_and_repeat(data: Path, trained: Path, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        own = context(data, tmp_path / name, "train", "prompt", cams=trained / "cams.h5")
        counts = PROMPT.run(PromptConfig(), own)
        files.append(own.out / "prompts.h5")
    assert files[0].read_bytes() == files[1].read_bytes()
    table = read_table(files[0], PROMPTS)
    assert counts["points"] == table.num_rows > 0
    for image_id in table.ids:
        size, rows = table.image_row(image_id), table.rows(image_id)
        assert ((rows["x"] >= 0) & (rows["x"] < size["image_w"])).all()
        assert ((rows["y"] >= 0) & (rows["y"] < size["image_h"])).all()
        assert set(rows["class_index"].tolist()) <= set(open_split("shapes_train", data).tags(image_id))


@pytest.mark.parametrize("fusion", ["learned", "features"])
def test_cam__a_learning_fusion_is_trained_and_saved(data: Path, tmp_path: Path, fusion: str) -> None:
    config = TINY.model_copy(update={"attention_fusion": fusion, "lr": 0.1})
    own = context(data, tmp_path, "train", "cam")
    CAM.run(config, own)
    model = load_classifier(own.out / "classifier.safetensors", TINY, own.split.classes)
    assert isinstance(model, MultiClassTokenClassifier)
    assert model.fusion.kind == fusion, "the file says what it is"
    assert model.fine is not None
    assert model.fine.offset.item() != 0.0, "the fine term taught nothing"
    assert read_table(own.out / "cams.h5", CAMS).ids == own.split.ids


def test_cam_and_prompt__a_convolutional_classifier_gives_coarse_points(data: Path, tmp_path: Path) -> None:
    config = TINY.model_copy(update={"architecture": "cnn", "backbone": "resnet10t"})
    maps = context(data, tmp_path, "train", "cam")
    CAM.run(config, maps)
    assert set(read_table(maps.out / "cams.h5", CAMS).columns["kind"].tolist()) == {0}
    points = context(data, tmp_path, "train", "prompt", cams=maps.out / "cams.h5")
    PROMPT.run(PromptConfig(), points)
    assert set(read_table(points.out / "prompts.h5", PROMPTS).columns["source"].tolist()) <= {0}
    assert points.failures.entries == {}


def test_prompt__maps_of_another_split_are_refused(data: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(StaleInputError, match="holds no image of shapes_test"):
        PROMPT.plan(PromptConfig(), context(data, tmp_path, "test", "prompt", cams=trained / "cams.h5"))


def test_prompt__image_without_maps_is_recorded(data: Path, trained: Path, tmp_path: Path) -> None:
    first = context(data, tmp_path, "train", "cam", checkpoint=trained / "classifier.safetensors")
    CAM.run(TINY, replace(first, split=first.split.limited(1)))
    own = context(data, tmp_path, "train", "prompt", cams=first.out / "cams.h5")
    PROMPT.run(PromptConfig(), own)
    assert sorted(own.failures.entries) == list(own.split.ids[1:])
    assert read_table(own.out / "prompts.h5", PROMPTS).ids == own.split.ids[:1]


def test_pictures__one_per_image(data: Path, trained: Path, tmp_path: Path) -> None:
    split = open_split("shapes_train", data)
    own = context(data, tmp_path, "train", "prompt", cams=trained / "cams.h5")
    PROMPT.run(PromptConfig(), own)
    drawn = draw_maps(trained, split, split.ids[:1], tmp_path) + draw_points(
        own.out, split, split.ids[1:2], tmp_path
    )
    assert [path.name for path in drawn] == [f"{image_id}.png" for image_id in split.ids[:2]]
    assert all(path.stat().st_size > 1000 for path in drawn)


def test_mean_average_precision__by_hand() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.1, 0.3, 0.0]], np.float32)
    tags = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]], np.float32)
    # class 0: ranks 1 and 3 -> (1 + 2/3) / 2; class 1: rank 3 -> 1/3; class 2 never occurs
    assert mean_average_precision(scores, tags) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2)


def test_held_out_ids__a_seeded_share_or_none() -> None:
    ids = [f"{i:03d}" for i in range(100)]
    held = held_out_ids(ids, 0.1, seed=0)
    assert len(held) == 10
    assert held == held_out_ids(ids, 0.1, seed=0)
    assert held != held_out_ids(ids, 0.1, seed=1)
    assert held_out_ids(ids[:20], 0.1, seed=0) == []


def test_epoch_choice__best_wins_ties_go_to_the_later_and_it_survives_a_restart(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = context(data, tmp_path, "train", "cam")
    model = build_classifier(TINY, 8, pretrained=False)
    assert isinstance(model, MultiClassTokenClassifier)
    choice = EpochChoice(own, TINY, model, ["x"] * 10)
    scores = iter([0.5, 0.9, 0.9, 0.7])
    monkeypatch.setattr(EpochChoice, "_score", lambda self: next(scores))
    for epoch in range(4):
        model.class_tokens.data.fill_(float(epoch))
        choice.finished(epoch)
    again = EpochChoice(replace(own, resume=True), TINY, model, ["x"] * 10)
    again.finished(3)  # already scored: not asked again
    assert again.restore_best() == (2, 0.9)
    assert float(model.class_tokens.data.mean()) == 2.0
