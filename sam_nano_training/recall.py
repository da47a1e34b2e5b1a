"""How much a segmenter finds by itself: box recall of a grid of clicks on drawn scenes it never saw.

`python -m sam_nano_training.recall --weights FILE` prints one JSON line. Scenes come from seeds that
training does not use.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from sam_nano_training.scenes import Level, draw_scene
from sam_nano_training.textures import make_noise_bank
from stages.core.ops.boxes import pairwise_iou
from stages.core.ops.mask_boxes import mask_to_box
from stages.core.segmenters.protocol import Segmenter
from stages.core.segmenters.sam_checkpoints import NANO_FILE, load_nano
from stages.core.segmenters.sam_segmenter import SamSegmenter

HELD_OUT_SEED: Final = 2**31
THRESHOLDS: Final = (0.5, 0.75, 0.9)


@dataclass(frozen=True)
class GridRule:
    """Clicks on a regular grid, and which of their masks count.

    Attributes:
        side: clicks per side.
        least_iou: masks need a predicted IoU above this.
        least_stability: and at least this IoU between their cuts at logits +1 and -1.
        nms: box IoU above which the mask of lower predicted IoU goes.
    """

    side: int = 16
    least_iou: float = 0.1
    least_stability: float = 0.0
    nms: float = 0.7


def tight_boxes(masks_NHW: Tensor) -> Tensor:
    """Half-open boxes (N, 4) of binary masks; all zeros for an empty one."""
    boxes = [mask_to_box(mask_HW) for mask_HW in masks_NHW.numpy()]
    return torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4))


def grid_boxes(segmenter: Segmenter, image_HW3: NDArray[np.uint8], rule: GridRule) -> Tensor:
    """Boxes (n, 4) of the masks that a grid of single clicks finds, best predicted IoU first."""
    encoded = segmenter.encode(image_HW3)
    height, width = image_HW3.shape[:2]
    steps = (torch.arange(rule.side) + 0.5) / rule.side
    points = torch.cartesian_prod(steps * height, steps * width).flip(1)[:, None]
    floor = torch.full((len(points), 3), rule.least_iou)
    drawn = segmenter.decode_above(
        encoded, points, torch.ones(points.shape[:2]), None, multimask=True, floor_PM=floor
    )
    rows, columns = (int(np.ceil(extent)) for extent in encoded.logit_extent(drawn.logits_NHW))
    inside = drawn.logits_NHW[:, :rows, :columns]
    stability = (inside > 1).sum((1, 2)) / (inside > -1).sum((1, 2)).clamp(min=1)
    kept = (stability >= rule.least_stability).nonzero().squeeze(1)
    boxes = torch.cat(
        [torch.zeros(0, 4)]
        + [
            tight_boxes(segmenter.upscale(part, encoded) > 0)
            for part in torch.split(drawn.logits_NHW[kept], 16)
        ]
    )
    scores = drawn.predicted_iou_PK[drawn.prompt[kept], drawn.mask_index[kept]]
    return boxes[nms(boxes, scores, rule.nms)]


def measure_recall(
    segmenter: Segmenter, images: Iterable[tuple[NDArray[np.uint8], Tensor]], rule: GridRule
) -> dict[str, float]:
    """Box recall at IoU .5, .75 and .9, and boxes per image.

    Args:
        segmenter: under test.
        images: pictures with the boxes (n, 4) that should be found.
        rule: how boxes are proposed.
    """
    best: list[Tensor] = []
    counts: list[int] = []
    for image, wanted in images:
        found = grid_boxes(segmenter, image, rule)
        counts.append(len(found))
        none = torch.zeros(len(wanted))
        best.append(pairwise_iou(wanted, found).amax(dim=1) if len(found) else none)
    reached = torch.cat(best) if best else torch.zeros(0)
    recall = {f"recall_{t:g}": float((reached >= t).float().mean()) for t in THRESHOLDS}
    return recall | {"boxes_per_image": float(np.mean(counts)), "objects": float(len(reached))}


def held_out_scenes(count: int) -> Iterable[tuple[NDArray[np.uint8], Tensor]]:
    """Drawn scenes without their padding, with the boxes of their objects (neither parts nor piles)."""
    bank = make_noise_bank(HELD_OUT_SEED)
    for index in range(count):
        scene = draw_scene(np.random.default_rng([HELD_OUT_SEED, index]), bank)
        masks = torch.from_numpy(scene.masks[scene.levels == Level.OBJECT] > 127)
        height, width = scene.valid_hw
        yield scene.image[:height, :width], tight_boxes(masks)


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights", type=Path, default=NANO_FILE, help="sam-nano weights, default the shipped ones"
    )
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--iou", type=float, default=GridRule.least_iou, help="least predicted IoU")
    parser.add_argument("--stability", type=float, default=GridRule.least_stability)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = SamSegmenter("sam-nano", load_nano(arguments.weights))
    rule = GridRule(least_iou=arguments.iou, least_stability=arguments.stability)
    figures = measure_recall(segmenter, held_out_scenes(arguments.scenes), rule)
    sys.stdout.write(json.dumps({name: round(value, 3) for name, value in figures.items()}) + "\n")


if __name__ == "__main__":
    main()
