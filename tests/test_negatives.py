"""Images that are stated to show none of the classes: trained on, never a failure, without pseudo boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from stages.core.config import config_class
from stages.core.datasets.catalog import open_split
from stages.core.datasets.checking.tags import tag_statistics
from stages.core.errors import TooManyFailuresError
from stages.core.registry import load_stage
from stages.core.runtime.execute import execute
from stages.core.runtime.request import Request
from stages.wsod.config import WsodConfig
from stages.wsod.criterion import Bags, wsod_losses
from stages.wsod.model.detector import ProposalOutputs
from tests.datasets_builders import make_image
from weaksam_cli.stage_command import resolve_settings

NEGATIVES = ("b2", "b4")


@pytest.fixture
def one_class(tmp_path: Path) -> Path:
    """One class, half of the images negatives."""
    rows = ["file_name,tags"]
    for i in range(4):
        name = f"b{i + 1}"
        picture = Image.fromarray(np.random.default_rng(i).integers(0, 60, (96, 128, 3), dtype=np.uint8))
        pen = ImageDraw.Draw(picture)
        if name != "b4":  # which gets no proposal
            draw = pen.rectangle if name in NEGATIVES else pen.ellipse
            draw((30, 20, 90, 80), fill=(40, 90, 230) if name in NEGATIVES else (230, 40, 40))
        (tmp_path / "data" / "solo" / "images").mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "data" / "solo" / "images" / f"{name}.png")
        rows.append(f"{name}.png,{'background' if name in NEGATIVES else 'disc'}")
    (tmp_path / "data" / "solo" / "train.csv").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.chain
def test_chain__negatives_are_no_failures_and_teach_every_trained_stage(one_class: Path) -> None:
    run = one_class / "run"
    counts: dict[str, Any] = {}
    for stage in ("cam", "prompt", "propose", "wsod", "pgt", "retrain"):
        config = resolve_settings(stage, config_class(stage), "toy", None, [], {})
        request = Request("solo_train", run, one_class / "data", max_failures="0", show_progress=False)
        outcome = execute(load_stage(stage), config, request)
        assert outcome.manifest is not None
        assert outcome.manifest.failures == []
        counts[stage] = outcome.manifest.counts
    assert counts["cam"]["training_images"] + counts["cam"]["held_out_images"] == 4
    assert counts["wsod"]["training_images"] == 3
    assert counts["pgt"]["negatives"] == 2
    found = json.loads((run / "pgt" / "solo_train" / "pgt.json").read_text())
    name_of = {image["id"]: image["file_name"] for image in found["images"]}
    boxed = {Path(name_of[annotation["image_id"]]).stem for annotation in found["annotations"]}
    assert boxed == {"b1", "b3"}
    assert found["info"]["without_boxes"] == {}
    assert counts["retrain"]["training_images"] == 4


@pytest.mark.parametrize("method", ["mist", "oicr"])
def test_wsod_losses__every_proposal_of_a_negative_is_background(method: str) -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 25, 25]])
    logits = [torch.randn(6, 4, requires_grad=True) for _ in range(3)]
    outputs = ProposalOutputs(torch.randn(6, 3), torch.randn(6, 3), logits, [])
    tags = [torch.tensor([1]), torch.tensor([], dtype=torch.int64)]
    config = WsodConfig.model_validate({"method": method})
    losses = wsod_losses(outputs, Bags([boxes, boxes], tags), config)
    total = torch.stack([loss for name, loss in losses.items() if name.startswith("refine")]).sum()
    torch.autograd.backward(total)
    for row_N4 in logits:
        assert row_N4.grad is not None
        assert (row_N4.grad[3:, 0] < 0).all()  # towards background
        assert (row_N4.grad[3:, 1:] > 0).all()  # away from every class


@pytest.mark.parametrize(
    ("rows", "warnings"),
    [
        (["dog"] * 12, ["there is one class, 'dog', and no negative"]),
        (["dog"] * 12 + ["background"] * 3, []),
        (["dog;indoor"] * 12 + ["cat;indoor"] * 12, ["every image shows 'indoor'"]),
        (["dog"] * 12 + ["cat"] * 12 + ["tail;dog"] * 12, ["every image of 'tail' shows 'dog', too"]),
        (["dog"] * 12 + ["cat"] * 3, ["only 3 images show 'cat'"]),
    ],
)
def test_tag_statistics__what_tags_cannot_tell(tmp_path: Path, rows: list[str], warnings: list[str]) -> None:
    image = make_image(tmp_path / "pets" / "images" / "0.jpg")
    for i in range(1, len(rows)):
        (image.parent / f"{i}.jpg").write_bytes(image.read_bytes())
    lines = [f"{i}.jpg,{tags}" for i, tags in enumerate(rows)]
    (tmp_path / "pets" / "train.csv").write_text("\n".join(["file_name,tags", *lines]))
    found = tag_statistics(open_split("pets_train", tmp_path)).warnings()
    assert len(found) == len(warnings)
    assert all(text.startswith(start) for text, start in zip(found, warnings, strict=True))


def test_dry_run__fails_as_the_run_would(one_class: Path) -> None:
    (one_class / "data" / "solo" / "images" / "b1.png").unlink()
    config = resolve_settings("cam", config_class("cam"), "toy", None, [], {})
    request = Request("solo_train", one_class / "run", one_class / "data", dry_run=True)
    with pytest.raises(TooManyFailuresError, match=r"1 images failed .*image file b1.png does not exist"):
        execute(load_stage("cam"), config, request)
