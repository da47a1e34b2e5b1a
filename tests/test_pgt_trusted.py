"""Boxes of people in the place of pseudo boxes: whole images, score 1, never dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.core.artifacts.coco_json import read_dataset
from stages.core.datasets.catalog import open_split
from stages.core.detectors.detr_losses import LayerOutput, SetCosts, layer_losses
from stages.core.detectors.training_data import PseudoGroundTruthData
from stages.core.detectors.two_stage.faster_rcnn import build_detector
from stages.core.errors import SchemaError
from stages.core.spec import FailureLog, StageContext
from stages.retrain.config import RetrainConfig
from tests.datasets_builders import HEIGHT, WIDTH
from tests.detector_builders import TINY
from tests.pgt_builders import context, run
from tests.two_stage_builders import CLASSES, batch, tiny


def corrected(tmp_path: Path, box: tuple[float, ...] = (1, 2, 20, 21), **image: Any) -> Path:
    """A tool's file: renumbered, img_2 has a dog, img_3 is empty, a score is left over."""
    content = {
        "images": [
            {"id": 901, "file_name": "upload/img_3.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 900, "file_name": "img_2.jpg", "width": WIDTH, "height": HEIGHT} | image,
        ],
        "annotations": [{"id": 1, "image_id": 900, "category_id": 1, "bbox": list(box), "score": 0.3}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    path = tmp_path / "corrected.json"
    path.write_text(json.dumps(content))
    return path


def with_trusted(tmp_path: Path, trusted: Path) -> StageContext:
    at = context(tmp_path)
    return StageContext(split=at.split, run=at.run, out=at.out, inputs={**at.inputs, "trusted": trusted})


def test_pgt__trusted_boxes_replace_those_of_their_images_and_are_known(tmp_path: Path) -> None:
    at = with_trusted(tmp_path, corrected(tmp_path, (1, 2, 99, 21)))
    counts = run(at)
    assert (counts["trusted_images"], counts["images_without_boxes"]) == (2, 0)
    written = read_dataset(at.out / "pgt.json", at.split)
    assert written.trusted == {"img_2", "img_3"}
    assert written.boxes["img_2"].boxes_xyxy.tolist() == [[1, 2, WIDTH, 23]]  # clipped
    assert (written.boxes["img_2"].scores.tolist(), len(written.boxes["img_3"])) == ([1.0], 0)
    assert len(written.boxes["img_1"]) == 3  # the others' are what they were
    info = json.loads((at.out / "pgt.json").read_text())["info"]
    assert sorted(info["trusted"]) == ["img_2.jpg", "img_3.jpg"]


@pytest.mark.parametrize(
    ("box", "image", "message"),
    [
        ((WIDTH, 2, 5, 5), {}, "a box of image img_2 has no area inside its"),
        (
            (1, 2, 20, 21),
            {"width": 2 * WIDTH, "height": 2 * HEIGHT},
            "says that image img_2 is 96 x 64 pixels",
        ),
        ((1, 2, 20, 21), {"file_name": "other/img_3.jpg"}, "are the same image 'img_3'"),
    ],
)
def test_pgt__trusted_boxes_that_cannot_be_right_are_refused(
    tmp_path: Path, box: tuple[float, ...], image: dict[str, Any], message: str
) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        run(with_trusted(tmp_path, corrected(tmp_path, box, **image)))
    assert "corrected.json" in str(caught.value)


def test_training_data__targets_say_whose_boxes_they_are(tmp_path: Path) -> None:
    at = with_trusted(tmp_path, corrected(tmp_path))
    run(at)
    taken = read_dataset(at.out / "pgt.json", at.split)
    config = RetrainConfig.model_validate(TINY)
    split = open_split("tiny_train", tmp_path / "data")
    data = PseudoGroundTruthData(
        split, taken.boxes, config.augmentation(), 0, False, FailureLog(), trusted=taken.trusted
    )
    targets = data.load(["img_1", "img_2"], 0).targets
    assert [bool(target["trusted"]) for target in targets] == [False, True]


def drop_everything(cls: Tensor, reg: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(cls), torch.zeros_like(reg)


def test_roi_drop__leaves_trusted_images_alone() -> None:
    torch.manual_seed(0)
    model = build_detector(tiny(), CLASSES, pretrained=False).train()
    images, targets = batch()
    model.drop_with(drop_everything)

    def losses(*trusted: bool) -> float:
        torch.manual_seed(1)
        marked = [
            target | {"trusted": torch.tensor(flag)} for target, flag in zip(targets, trusted, strict=True)
        ]
        return float(model(images, marked)["loss_classifier"])

    assert losses(False, False) == 0
    assert 0 < losses(True, False) < losses(True, True)


def test_layer_losses__drop_leaves_trusted_targets_alone() -> None:
    torch.manual_seed(0)
    layer = LayerOutput(torch.randn(2, 4, 3), torch.rand(2, 4, 4) * 0.5 + 0.2)
    matches = [(torch.tensor([1]), torch.tensor([0])), (torch.tensor([2]), torch.tensor([0]))]
    costs = SetCosts("focal", 0.25)

    def box_loss(*trusted: bool) -> float:
        targets = [
            {
                "class_labels": torch.tensor([1]),
                "boxes": torch.rand(1, 4) * 0 + 0.4,
                "trusted": torch.tensor(flag),
            }
            for flag in trusted
        ]
        return float(layer_losses(layer, targets, matches, costs, 2, drop_everything)["loss_box"])

    assert box_loss(False, False) == 0
    np.testing.assert_allclose(box_loss(True, True), box_loss(True, False) + box_loss(False, True), rtol=1e-6)
    assert box_loss(True, False) > 0
