"""From pseudo boxes to pseudo masks: every box prompts a segmenter, one image encoding for all of them.

The paper's extension to instance segmentation. The released code leaves this step out; decided here:
1. one mask per box (or the best of three by predicted IoU), cut at the segmenter's threshold (logit 0);
2. what lies outside the slightly enlarged box is cleared, and only the largest connected piece is kept;
3. a mask smaller than `min_area` of its box is no mask of the object: the three-mask output is asked, and its mask
   of highest predicted IoU that is large enough is taken;
4. if none is, the box itself is filled: its class is known to be in the image, and leaving the object out would teach
   the detector that it is background. How often 3 and 4 happen is counted in the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from stages.core.vision.segmenters import EncodedImage, Segmenter

Mask = NDArray[np.bool_]
Box = NDArray[np.float32]

FROM_PROMPT, FROM_SECOND_TRY, FROM_BOX = 0, 1, 2
"""How a mask came about."""


@dataclass(frozen=True)
class MaskRule:
    """How a mask is made from a box.

    Attributes:
        choice: ask for one mask, or for three and take the one of highest predicted IoU.
        margin: enlargement of the box that the mask is clipped to, share of each side added on each side.
        largest_piece: keep only the largest 8-connected piece.
        min_area: smallest mask, as a share of its box's area.
        boxes_per_batch: boxes decoded at once.
    """

    choice: Literal["single", "best-of-three"] = "single"
    margin: float = 0.05
    largest_piece: bool = True
    min_area: float = 0.01
    boxes_per_batch: int = 32


@dataclass(frozen=True)
class BoxMask:
    """The mask of one box: (H, W) bool, never empty, and how it came about."""

    mask_HW: Mask
    origin: int


def masks_of_boxes(
    segmenter: Segmenter, pixels_HW3: NDArray[np.uint8], boxes_xyxy: NDArray[np.float32], rule: MaskRule
) -> list[BoxMask]:
    """Make one mask per box; the image is encoded once, and not at all without boxes.

    Args:
        segmenter: already on its device.
        pixels_HW3: RGB.
        boxes_xyxy: (n, 4) half-open pixels.
        rule: how.
    """
    if len(boxes_xyxy) == 0:
        return []
    encoded = segmenter.encode(pixels_HW3)
    multimask = rule.choice == "best-of-three"
    masks: list[BoxMask | None] = []
    for start in range(0, len(boxes_xyxy), rule.boxes_per_batch):
        batch = boxes_xyxy[start : start + rule.boxes_per_batch]
        masks += _prompt(segmenter, encoded, batch, rule, multimask, FROM_PROMPT)
    failed = [i for i, mask in enumerate(masks) if mask is None]
    for start in range(0, len(failed), rule.boxes_per_batch):
        again = failed[start : start + rule.boxes_per_batch]
        retried = _prompt(segmenter, encoded, boxes_xyxy[again], rule, True, FROM_SECOND_TRY)
        for i, mask in zip(again, retried, strict=True):
            masks[i] = mask
    shape = pixels_HW3.shape[:2]
    return [
        BoxMask(filled_box(box, shape[0], shape[1]), FROM_BOX) if mask is None else mask
        for box, mask in zip(boxes_xyxy, masks, strict=True)
    ]


def _prompt(
    segmenter: Segmenter, encoded: EncodedImage, boxes_P4: Box, rule: MaskRule, multimask: bool, origin: int
) -> list[BoxMask | None]:
    """The best acceptable mask of every box, or None."""
    decoded = segmenter.decode(encoded, None, None, torch.from_numpy(boxes_P4), multimask=multimask)
    order_PM = decoded.predicted_iou.float().argsort(dim=1, descending=True, stable=True)
    found: list[BoxMask | None] = [None] * len(boxes_P4)
    # The best mask of every box first; full-size pixels are only made for boxes still without one.
    for rank in range(order_PM.shape[1] if origin == FROM_SECOND_TRY else 1):
        rows = [row for row, mask in enumerate(found) if mask is None]
        if not rows:
            break
        chosen: Tensor = decoded.low_res_logits[rows, order_PM[rows, rank]]
        full = (segmenter.upscale(chosen, encoded) > segmenter.mask_threshold).cpu().numpy()
        for row, mask_HW in zip(rows, full, strict=True):
            clean = clean_mask(mask_HW, boxes_P4[row], rule)
            if clean.sum() >= max(1.0, rule.min_area * _area(boxes_P4[row])):
                found[row] = BoxMask(clean, origin)
    return found


def clean_mask(mask_HW: Mask, box_xyxy: NDArray[Any], rule: MaskRule) -> Mask:
    """Clear what lies outside the enlarged box, then keep the largest piece (the first of equal ones)."""
    height, width = mask_HW.shape
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    dx, dy = rule.margin * (x2 - x1), rule.margin * (y2 - y1)
    allowed = filled_box(np.array([x1 - dx, y1 - dy, x2 + dx, y2 + dy]), height, width)
    clipped: Mask = mask_HW & allowed
    if not rule.largest_piece or not clipped.any():
        return clipped
    _, labels_HW, statistics, _ = cv2.connectedComponentsWithStats(clipped.astype(np.uint8), connectivity=8)
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    piece: Mask = labels_HW == largest
    return piece


def filled_box(box_xyxy: NDArray[Any], height: int, width: int) -> Mask:
    """Pixels that a box touches, at least one."""
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    left, top = int(np.clip(np.floor(x1), 0, width - 1)), int(np.clip(np.floor(y1), 0, height - 1))
    right = int(np.clip(np.ceil(x2), left + 1, width))
    bottom = int(np.clip(np.ceil(y2), top + 1, height))
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def mask_box(mask_HW: Mask) -> Box:
    """Tight half-open box (4,) of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def _area(box_xyxy: NDArray[Any]) -> float:
    return float(max(0.0, box_xyxy[2] - box_xyxy[0]) * max(0.0, box_xyxy[3] - box_xyxy[1]))
