"""Segmenters and their weights on the command line: propose with the transformers library's, and verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch

from stages.core.artifacts.files import read_json
from stages.core.artifacts.schemas import PROMPTS, PROPOSALS
from stages.core.artifacts.table import ImageRows, gather, read_table, write_table
from tests.datasets_builders import HEIGHT, WIDTH, make_voc
from tests.hf_builders import save_tiny
from tests.propose_builders import prompt_rows
from tests.run_builder import build_run, draw_toy_data
from tests.segmenter_builders import shaken, tiny_vit_sam
from weaksam_cli import main as entry_point

IDS = ("img_1", "img_2", "img_3")


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        entry_point.main(words)
    code = caught.value.code
    return code if isinstance(code, int) else 0 if code is None else 1


@pytest.fixture
def split(tmp_path: Path) -> tuple[str, ...]:
    """A small VOC data set with prompts, as arguments of ``weaksam propose``."""
    make_voc(tmp_path / "data")
    size = {"image_h": HEIGHT, "image_w": WIDTH}
    rows = {i: ImageRows(prompt_rows((9, 9, 0, 0), (30, 20, 1, 0), (31, 8, 1, 2)), size) for i in IDS}
    write_table(tmp_path / "prompts.h5", PROMPTS, gather(PROMPTS, rows))
    return (
        "propose", "--split", "tiny_train", "--run", str(tmp_path / "run"), "--prompts", str(tmp_path / "prompts.h5"),
        "--device", "cpu", "--workers", "0", "--points-per-side", "3", "--pred-iou-thresh", "0",
        "--prompt-pred-iou-thresh", "0", "--min-side-px", "1", "--save-masks",
    )  # fmt: skip


def proposals(tmp_path: Path) -> Any:
    return read_table(tmp_path / "run" / "propose" / "tiny_train" / "proposals.h5", PROPOSALS)


@pytest.mark.parametrize("name", ["sam2-hiera-tiny", "hq-sam-vit-b", "edgetam"])
def test_propose__with_a_segmenter_of_the_transformers_library(
    split: tuple[str, ...], tmp_path: Path, name: str
) -> None:
    folder = save_tiny(name, tmp_path / "model")
    assert command(*split, "--segmenter", name, "--segmenter-weights", str(folder)) == 0
    table = proposals(tmp_path)
    assert table.ids == IDS
    assert all(len(table.rows(i)["x1"]) for i in IDS)
    columns = table.columns
    assert (columns["x1"] >= 0).all()
    assert (columns["x2"] <= WIDTH).all()
    assert (columns["y2"] <= HEIGHT).all()
    assert np.bitwise_or.reduce(columns["source"]) == 1 | 2 | 8, "grid, coarse and cross"


def test_wsis__with_a_segmenter_of_the_transformers_library(tmp_path: Path) -> None:
    folder, run = save_tiny("edgetam", tmp_path / "model"), tmp_path / "run"
    draw_toy_data(tmp_path / "data", train=3, test=1)
    build_run(run, tmp_path / "data", "toy_train", ["pgt"])
    words = (
        "--split",
        "toy_train",
        "--run",
        str(run),
        "--recipe",
        "toy",
        "--device",
        "cpu",
        "--workers",
        "0",
    )
    assert command("wsis", *words, "--segmenter", "edgetam", "--segmenter-weights", str(folder)) == 0
    made = read_json(run / "wsis" / "toy_train" / "pgt_masks.json")
    assert (
        len(made["annotations"]) == len(read_json(run / "pgt" / "toy_train" / "pgt.json")["annotations"]) > 0
    )
    assert all(one["segmentation"]["counts"] for one in made["annotations"])


def test_propose__weights_of_another_kind(
    split: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny("sam2-hiera-tiny", tmp_path / "model")
    assert command(*split, "--segmenter", "edgetam", "--segmenter-weights", str(folder)) == 3
    assert "weights of 'sam2', not of 'edgetam'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sam-vit-b", "sam2.1-hiera-tiny"])
def test_propose__absent_weights_name_the_command_and_cost_nothing(
    split: tuple[str, ...], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*split) == 0
    made = proposals(tmp_path).num_rows
    for more in (("--overwrite", "--dry-run"), ("--overwrite",)):
        assert command(*split, "--segmenter", name, *more) == 5
        assert f"weaksam weights get {name}" in capsys.readouterr().err
    assert proposals(tmp_path).num_rows == made


def test_propose__misspelt_segmenter(split: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*split, "--segmenter", "sam-nona", "--dry-run") == 2
    assert "did you mean 'sam-nano'" in capsys.readouterr().err


def test_propose__hub_id_without_network(split: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*split, "--segmenter", "edgetam", "--segmenter-weights", "somebody/a-model-not-here") == 5
    assert "somebody/a-model-not-here" in capsys.readouterr().err


def test_propose__takes_the_cached_file(
    split: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", tiny_vit_sam)
    cached = tmp_path / "cache" / "weights" / "sam_vit_b_01ec64.pth"
    cached.parent.mkdir(parents=True)
    torch.save(shaken(tiny_vit_sam()).state_dict(), cached)
    assert command(*split, "--segmenter", "sam-vit-b") == 0
    assert proposals(tmp_path).num_rows > 0


def test_propose__weights_that_the_user_added(
    split: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", tiny_vit_sam)
    (tmp_path / "own.yaml").write_text("mine: {url: 'http://x.example/mine.pth', architecture: sam-vit-b}\n")
    monkeypatch.setenv("WEAKSAM_WEIGHTS", str(tmp_path / "own.yaml"))
    torch.save(shaken(tiny_vit_sam()).state_dict(), tmp_path / "elsewhere.pth")
    assert command(*split, "--segmenter", "mine") == 5
    assert (
        command(
            *split,
            "--segmenter",
            "mine",
            "--segmenter-weights",
            str(tmp_path / "elsewhere.pth"),
            "--overwrite",
        )
        == 0
    )
    assert proposals(tmp_path).num_rows > 0


def test_verify__a_checkpoint_in_the_published_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", tiny_vit_sam)
    own = tmp_path / "own.pth"
    torch.save(tiny_vit_sam().state_dict(), own)
    assert command("weights", "verify", "sam-vit-b", str(own)) == 0
    assert "weights of sam-vit-b" in (said := capsys.readouterr().out)
    assert "not the published file" in said
    assert command("weights", "verify", "sam-vit-b", str(own), "--published") == 3
    assert "not the published file of sam-vit-b: truncated" in capsys.readouterr().err


VIT_L = {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 1024)}
STRANGERS: list[Any] = [
    pytest.param(VIT_L, "weights of sam-vit-l, not of sam-vit-b", id="vit-l"),
    pytest.param({**VIT_L, "mask_decoder.hf_token.weight": torch.zeros(1, 4)}, "weights of HQ-SAM", id="hq-sam"),
    pytest.param({"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(1)}, "weights of MobileSAM", id="mobile"),
    pytest.param({"vision_encoder.pos_embed": torch.zeros(1)}, "of the transformers library", id="transformers"),
    pytest.param({"model": {"image_encoder.trunk.blocks.0.x": torch.zeros(1)}}, "but SAM 2", id="sam2"),
    pytest.param({"fc.weight": torch.zeros(1)}, "weights of an image classifier", id="classifier"),
    pytest.param({"something": torch.zeros(1)}, "not weights of sam-vit-b: tensors do not fit", id="unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "message"), STRANGERS)
def test_verify__names_another_architecture(
    tmp_path: Path, state: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", tiny_vit_sam)
    torch.save(state, tmp_path / "other.pth")
    assert command("weights", "verify", "sam-vit-b", str(tmp_path / "other.pth")) == 3
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html><body>404</body></html>", "a web page, not weights"),
        (b"PK\x03\x04 cut", "damaged checkpoint"),
    ],
)
def test_verify__not_a_checkpoint(
    tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sam.pth").write_bytes(content)
    assert command("weights", "verify", "sam-vit-b", str(tmp_path / "sam.pth")) == 3
    assert message in capsys.readouterr().err


def test_verify__a_folder_of_the_transformers_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny("hq-sam-vit-b", tmp_path / "model")
    assert command("weights", "verify", "hq-sam-vit-b", str(folder)) == 0
    assert "weights of hq-sam-vit-b" in capsys.readouterr().out
    assert command("weights", "verify", "edgetam", str(folder)) == 3
    assert command("weights", "verify", "edgetam", str(tmp_path / "nothing")) == 5


def test_vit_b__in_the_published_format_through_verify_and_propose(
    split: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real architecture with random weights: 375 MB, one image, five prompts."""
    with torch.device("meta"):
        shapes = segment_anything.sam_model_registry["vit_b"]().state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.02 * torch.randn(value.shape, generator=generator) for name, value in shapes.items()}
    torch.save(state, tmp_path / "vit_b.pth")
    del state
    try:
        assert command("weights", "verify", "sam-vit-b", str(tmp_path / "vit_b.pth")) == 0
        assert "weights of sam-vit-b, 93.7 M parameters" in capsys.readouterr().out
        assert command("weights", "verify", "sam-vit-h", str(tmp_path / "vit_b.pth")) == 3
        assert "weights of sam-vit-b, not of sam-vit-h" in capsys.readouterr().err
        words = (
            "--segmenter",
            "sam-vit-b",
            "--segmenter-weights",
            str(tmp_path / "vit_b.pth"),
            "--limit",
            "1",
        )
        assert command(*split, *words, "--points-per-side", "1") == 0
    finally:
        (tmp_path / "vit_b.pth").unlink()
    table = proposals(tmp_path)
    assert table.ids == IDS[:1]
    assert table.num_rows > 0
