"""A backbone, a segmenter and a data format, each added as docs/architecture.md says, with the least that works."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core.artifacts.schemas import PROMPTS
from stages.core.backbones.timm_backbones import build_backbone
from stages.core.datasets import catalog, layouts
from stages.core.datasets.formats import scanning
from stages.core.datasets.split import ListedImage, Listing
from stages.core.errors import MissingInputError
from stages.core.evaluation.ground_truth import load_ground_truth
from stages.core.segmenters.box_to_mask import FROM_PROMPT, MaskRule, masks_of_boxes
from stages.core.segmenters.protocol import Decoded, EncodedImage, SelectedMasks
from stages.propose.config import ProposeConfig
from stages.propose.proposer import Proposer


class ThreeLayers(nn.Module):
    """Maps at strides 4, 8 and 16."""

    def __init__(self, in_chans: int = 3, num_classes: int = 0) -> None:
        super().__init__()
        channels, steps = (in_chans, 8, 16, 24), (4, 2, 2)
        self.layers = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], step, step) for i, step in enumerate(steps)
        )
        self.feature_info = [
            {"num_chs": channels[i + 1], "reduction": 4 * 2**i, "module": f"layers.{i}"} for i in range(3)
        ]

    def prune_intermediate_layers(self, indices: Sequence[int], *_: Any, **__: Any) -> list[int]:
        self.layers = self.layers[: max(indices) + 1]
        return list(indices)

    def forward_intermediates(self, x: Tensor, indices: Sequence[int], **_: Any) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            x = layer(x).relu()
            maps.append(x)
        return [maps[i] for i in indices]


@register_model
def three_layers_of_a_test(pretrained: bool = False, **options: Any) -> nn.Module:
    maps = {"out_indices": (0, 1, 2), "feature_cls": "getter"}
    model: nn.Module = build_model_with_cfg(
        ThreeLayers, "three_layers_of_a_test", pretrained, feature_cfg=maps, **options
    )
    return model


def test_backbone__registered_with_timm_is_known_by_its_name() -> None:
    backbone = build_backbone("three_layers_of_a_test", (4, 8), pretrained=False)
    assert [tuple(feats.shape) for feats in backbone(torch.zeros(1, 3, 64, 32))] == [
        (1, 8, 16, 8),
        (1, 16, 8, 4),
    ]
    backbone.freeze_through(4)
    assert {name for name, p in backbone.named_parameters() if not p.requires_grad} == {
        "body.model.layers.0.weight",
        "body.model.layers.0.bias",
    }


class SameColor:
    """The mask of a prompt is what has the color in its middle."""

    name, mask_threshold, side = "same-color", 0.0, 64

    def encode(self, image_HW3: NDArray[np.uint8]) -> EncodedImage:
        height, width = image_HW3.shape[:2]
        pixels = torch.from_numpy(image_HW3).permute(2, 0, 1)[None].float() / 255
        cells = F.interpolate(pixels, (self.side, self.side))
        return EncodedImage(cells, height, width, self.side, self.side, self.side, via_input=False)

    def encode_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[EncodedImage]:
        return [self.encode(image) for image in images]

    def decode(
        self, encoded: EncodedImage, points_PK2: Tensor | None, labels_PK: Tensor | None,
        boxes_P4: Tensor | None, *, multimask: bool,
    ) -> Decoded:  # fmt: skip
        if boxes_P4 is not None:
            middles_P2 = boxes_P4.reshape(-1, 2, 2).mean(dim=1)
        else:
            assert points_PK2 is not None
            middles_P2 = points_PK2[:, 0]
        scale = torch.tensor([self.side / encoded.width, self.side / encoded.height])
        x, y = (middles_P2 * scale).long().clamp(0, self.side - 1).unbind(dim=1)
        image = encoded.embedding_1CHW[0]
        distance = (image - image[:, y, x].T[:, :, None, None]).abs().amax(dim=1)
        logits = 20 * (0.1 - distance)[:, None].expand(-1, 3 if multimask else 1, -1, -1)
        return Decoded(logits, torch.full(logits.shape[:2], 0.9))

    def decode_above(
        self, encoded: EncodedImage, points_PK2: Tensor | None, labels_PK: Tensor | None,
        boxes_P4: Tensor | None, *, multimask: bool, floor_PM: Tensor,
    ) -> SelectedMasks:  # fmt: skip
        decoded = self.decode(encoded, points_PK2, labels_PK, boxes_P4, multimask=multimask)
        prompt, mask = (decoded.predicted_iou > floor_PM).nonzero(as_tuple=True)
        return SelectedMasks(prompt, mask, decoded.low_res_logits[prompt, mask], decoded.predicted_iou)

    def upscale(self, low_res_logits: Tensor, encoded: EncodedImage) -> Tensor:
        leading, size = low_res_logits.shape[:-2], (encoded.height, encoded.width)
        full = F.interpolate(low_res_logits.reshape(-1, 1, self.side, self.side), size, mode="bilinear")
        return full.reshape(*leading, *size)


def square() -> NDArray[np.uint8]:
    image = np.zeros((48, 60, 3), np.uint8)
    image[10:30, 20:40] = 200
    return image


def test_segmenter__proposes_boxes_with_nothing_but_the_protocol() -> None:
    proposer = Proposer(SameColor(), ProposeConfig(points_per_side=8, refine_top_k=0))
    no_points = {name: np.zeros(0, dtype) for name, dtype in PROMPTS.columns.items()}
    rows = proposer.propose(square(), no_points).columns
    boxes = np.stack([rows[c] for c in ("x1", "y1", "x2", "y2")], axis=1)
    assert np.abs(boxes - [20, 10, 40, 30]).max(axis=1).min() <= 1


def test_segmenter__makes_a_mask_of_a_box_with_nothing_but_the_protocol() -> None:
    (mask,) = masks_of_boxes(SameColor(), square(), np.array([[18, 8, 42, 32]], np.float32), MaskRule())
    assert mask.origin == FROM_PROMPT
    assert abs(int(mask.mask_HW.sum()) - 400) <= 80


def read_lines(dataset: layouts.Dataset, subset: layouts.Subset, *, train: bool) -> Listing:
    assert subset.index is not None
    rows = [json.loads(line) for line in subset.index.read_text().splitlines()]
    classes = tuple(sorted({tag for row in rows for tag in row["tags"]}))
    images = [
        ListedImage(
            row["file"].removesuffix(".png"), number, row["file"],
            tuple(classes.index(tag) for tag in row["tags"]) if train else (),
        )
        for number, row in enumerate(rows, 1)
    ]  # fmt: skip
    return Listing(classes, tuple(range(1, len(classes) + 1)), dataset.root / "images", tuple(images))


def scan_lines(name: str, root: Path) -> layouts.Dataset | None:
    subsets = {
        file.stem: layouts.Subset(file, (root / "images",), "train" if file.stem == "train" else "test")
        for file in root.glob("*.lines")
    }
    return layouts.Dataset(name, root, "jsonl", subsets) if subsets else None  # type: ignore[arg-type]


def test_data_format__with_a_scanner_and_a_reader_gives_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanners: list[Any] = [*scanning.SCANNERS, ("jsonl", scan_lines)]
    readers: dict[Any, Any] = catalog.READERS
    monkeypatch.setattr(scanning, "SCANNERS", scanners)
    monkeypatch.setitem(readers, "jsonl", read_lines)
    images = tmp_path / "pets" / "images"
    images.mkdir(parents=True)
    cv2.imwrite(str(images / "a.png"), np.zeros((4, 5, 3), np.uint8))
    for subset in ("train", "test"):
        (tmp_path / "pets" / f"{subset}.lines").write_text('{"file": "a.png", "tags": ["cat", "dog"]}\n')
    train, test = (catalog.open_split(f"pets_{subset}", tmp_path) for subset in ("train", "test"))
    assert (train.classes, train.tags("a")) == (("cat", "dog"), (0, 1))
    assert (test.role, test.train_split, test.has_tags) == ("test", "pets_train", False)
    with pytest.raises(MissingInputError, match="tags only"):
        load_ground_truth("pets_train", tmp_path)
