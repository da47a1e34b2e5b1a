"""The proposal stage on files: resume, workers, failures, stale prompts, shards."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stages.core.artifacts.schemas import PROMPTS, PROPOSALS
from stages.core.artifacts.table import ImageRows, gather, read_table, write_table
from stages.core.errors import PreemptedError, SchemaError, StaleInputError
from stages.core.runtime import parts
from stages.core.segmenters.sam_nano import ARCHITECTURE, build_sam_nano
from stages.core.spec import StageContext
from stages.propose.config import ProposeConfig
from stages.propose.stage import STAGE
from stages.propose.viz import draw
from tests.fake_split import FakeSplit
from tests.propose_builders import prompt_rows

IDS = ("a", "b", "c", "d", "e")


@dataclass(frozen=True)
class PictureSplit(FakeSplit):
    folder: Path = field(default=Path())

    def image_path(self, image_id: str) -> Path:
        return self.folder / self.file_name(image_id)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_SIZE", 2)


@pytest.fixture
def world(tmp_path: Path) -> StageContext:
    """Five images, prompts for four of them, and a folder."""
    rng = np.random.default_rng(0)
    for image_id in IDS:
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{image_id}.jpg")
    size = {"image_h": 40, "image_w": 50}
    rows = {
        i: ImageRows(prompt_rows((5.0 + n, 9, 0, 0), (30, 20, 1, 2)), size) for n, i in enumerate(IDS[:4])
    }
    rows["b"] = ImageRows(prompt_rows((-3, 9, 0, 0), (np.nan, 20, 1, 2), (7, 7, 1, 1)), size)
    write_table(tmp_path / "prompts.h5", PROMPTS, gather(PROMPTS, rows))
    split: Any = PictureSplit(IDS, folder=tmp_path)
    out = tmp_path / "out"
    return StageContext(split=split, run=tmp_path, out=out, inputs={"prompts": tmp_path / "prompts.h5"})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the shipped architecture, as a checkpoint."""
    torch.manual_seed(0)
    sam = build_sam_nano()
    with torch.no_grad():
        for parameter in sam.mask_decoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        sam.mask_decoder.iou_prediction_head.layers[-1].bias += 0.8
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_file({k: v.half() for k, v in sam.state_dict().items()}, path, {"architecture": ARCHITECTURE})
    return path


def settings(weights: Path, **changes: Any) -> ProposeConfig:
    values = {
        "points_per_side": 2,
        "stability_score_thresh": 0.0,
        "prompt_stability_score_thresh": 0.0,
        "union_nms_thresh": 0.99,
    }
    return ProposeConfig.model_validate({**values, "segmenter_weights": str(weights), **changes})


def run(context: StageContext, config: ProposeConfig, out: str, **changes: Any) -> tuple[bytes, StageContext]:
    here = replace(context, out=context.run / out, **changes)
    STAGE.run(config, here)
    return (here.out / "proposals.h5").read_bytes(), here


def test_run__every_image_has_an_entry(world: StageContext, weights: Path) -> None:
    config = settings(weights)
    counts = STAGE.run(config, world)
    table = read_table(world.out / "proposals.h5", PROPOSALS)
    assert table.ids == IDS
    assert counts["prompts_dropped"] == 2
    assert counts["proposals"] == table.num_rows > 0
    sources = {i: set(table.rows(i)["source"].tolist()) for i in IDS}
    assert sources["e"] == {1}, "an image without prompts gets the grid"
    assert any(bits & 2 for bits in sources["a"])
    assert not any(bits & (2 | 8) for bits in sources["b"]), "points outside the image were used"
    assert world.failures.entries == {}
    assert STAGE.plan(config, world).images == 5


def test_run__prompts_without_a_single_point_leave_the_grid(world: StageContext, weights: Path) -> None:
    nothing = {i: ImageRows(prompt_rows(), {"image_h": 40, "image_w": 50}) for i in IDS}
    write_table(world.input("prompts"), PROMPTS, gather(PROMPTS, nothing))
    STAGE.run(settings(weights), world)
    table = read_table(world.out / "proposals.h5", PROPOSALS)
    assert set(table.columns["source"].tolist()) == {1}
    assert world.failures.entries == {}


def test_run__same_bytes_again_with_workers_and_after_a_kill(world: StageContext, weights: Path) -> None:
    config = settings(weights, points_per_side=1)
    world = replace(world, split=replace(world.split, ids=IDS[:3]))  # two parts
    alone, _ = run(world, config, "alone")
    parallel, _ = run(world, config, "parallel", workers=2)
    assert parallel == alone
    calls = iter(range(10))

    def stop_at_second() -> None:
        if next(calls) == 0:
            raise PreemptedError("stop")

    with pytest.raises(PreemptedError):
        run(world, config, "killed", interrupted_fn=stop_at_second)
    assert len(list((world.run / "killed" / "parts").glob("*.h5"))) == 1
    resumed, _ = run(world, config, "killed", resume=True)
    assert resumed == alone


def test_run__shards_meet_in_the_last_one(world: StageContext, weights: Path) -> None:
    config = settings(weights)
    alone, _ = run(world, config, "alone")
    first = replace(world, out=world.run / "sharded", shard=(0, 2))
    assert STAGE.run(config, first) == {}
    assert not (first.out / "proposals.h5").exists()
    sharded, _ = run(world, config, "sharded", shard=(1, 2))
    assert sharded == alone


def test_run__bad_images_are_failures(world: StageContext, weights: Path) -> None:
    (world.run / "a.jpg").write_bytes(b"not an image")
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(world.run / "c.jpg")  # not what cam saw
    STAGE.run(settings(weights), world)
    table = read_table(world.out / "proposals.h5", PROPOSALS)
    assert table.ids == ("b", "d", "e")
    assert set(world.failures.entries) == {"a", "c"}
    assert "50x40" in world.failures.entries["c"]


def test_run__no_proposal_is_a_failure_with_an_entry(world: StageContext, weights: Path) -> None:
    STAGE.run(settings(weights, min_side_px=1000), world)
    table = read_table(world.out / "proposals.h5", PROPOSALS)
    assert table.ids == IDS
    assert table.num_rows == 0
    assert set(world.failures.entries) == set(IDS)
    assert "no proposal" in world.failures.entries["a"]


def test_plan__prompts_of_another_split(world: StageContext, weights: Path) -> None:
    rows = {"z": ImageRows(prompt_rows(), {"image_h": 1, "image_w": 1})}
    write_table(world.run / "prompts.h5", PROMPTS, gather(PROMPTS, rows))
    with pytest.raises(StaleInputError, match="no image of toy_train"):
        STAGE.plan(settings(weights), world)
    (world.run / "prompts.h5").write_bytes(b"junk")
    with pytest.raises(SchemaError):
        STAGE.plan(settings(weights), world)


def test_draw__one_picture_per_image(world: StageContext, weights: Path) -> None:
    STAGE.run(settings(weights, save_masks=True), world)
    table = read_table(world.out / "proposals.h5", PROPOSALS)
    assert (table.columns["rle_count"] > 0).all()
    paths = draw(world.out, world.split, ("a", "e", "missing"), world.run / "viz")
    assert [p.name for p in paths] == ["a.png", "e.png"]
    assert all(p.stat().st_size > 0 for p in paths)
