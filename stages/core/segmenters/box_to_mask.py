"""From pseudo boxes to pseudo masks: every box prompts a segmenter, one image encoding for all of them.

The paper's extension to instance segmentation. The released code leaves this step out; decided here:
1. one mask per box, or the best of three by predicted IoU, or by predicted IoU x IoU of the mask's tight box with the
   prompting box (`best-fit`: the box is known, a mask that does not reach its sides is a part); cut at the segmenter's
   threshold (logit 0);
2. what lies outside the slightly enlarged box is cleared, and only the largest connected component is kept;
3. a mask smaller than `min_mask_area_fraction` of its box is no mask of the object: the next best of the three is
   taken, and the single-mask output is followed by the three-mask output;
4. if none is left, the box itself is filled: its class is known to be in the image, and leaving the object out would
   teach the detector that it is background. How often 3 and 4 happen is counted in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stages.core.ops.mask_boxes import mask_to_box
from stages.core.structures.rle import RLE, encode_mask

if TYPE_CHECKING:
    from stages.core.segmenters.protocol import EncodedImage, Segmenter
    from stages.core.settings import BoxToMaskSettings

Mask = NDArray[np.bool_]
Box = NDArray[np.float32]

Choice = Literal["single", "best-of-three", "best-fit"]

FROM_PROMPT, FROM_SECOND_TRY, FROM_BOX = 0, 1, 2
"""How a mask came about."""

PIXELS_AT_ONCE = 2**25
"""Pixels of masks that are drawn at full size together: 128 MiB. A photo of 12 megapixels has its masks box by box."""


@dataclass(frozen=True)
class MaskRule:
    """How a mask is made from a box.

    Attributes:
        choice: ask for one mask, or for three and take the best by predicted IoU or by predicted IoU x box fit.
        box_margin_fraction: enlargement of the box that the mask is clipped to, per side and as a fraction of it.
        largest_component: keep only the largest 8-connected component.
        min_mask_area_fraction: smallest mask, as a fraction of its box's area.
        prompts_per_batch: boxes decoded at once.
    """

    choice: Choice = "best-fit"
    box_margin_fraction: float = 0.05
    largest_component: bool = True
    min_mask_area_fraction: float = 0.01
    prompts_per_batch: int = 32

    @classmethod
    def of(cls, settings: BoxToMaskSettings) -> Self:
        """Return the rule that settings describe."""
        return cls(
            choice=settings.mask_choice,
            box_margin_fraction=settings.box_margin_fraction,
            largest_component=settings.largest_component,
            min_mask_area_fraction=settings.min_mask_area_fraction,
            prompts_per_batch=settings.prompts_per_batch,
        )


@dataclass(frozen=True)
class BoxMask:
    """The mask of one box: (H, W) bool, never empty, and how it came about."""

    mask_HW: Mask
    origin: int


def run_lengths(masks: Sequence[BoxMask]) -> list[RLE]:
    """Encode masks one by one: coding needs copies, and all masks of a large photo at once take gigabytes."""
    return [encode_mask(one.mask_HW) for one in masks]


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
    height, width = pixels_HW3.shape[:2]
    masks: list[BoxMask | None] = [None] * len(boxes_xyxy)
    tries = (False, True) if rule.choice == "single" else (True,)
    for multimask in tries:
        todo = [i for i, mask in enumerate(masks) if mask is None]
        for start in range(0, len(todo), rule.prompts_per_batch):
            batch = todo[start : start + rule.prompts_per_batch]
            found = _prompt(segmenter, encoded, boxes_xyxy[batch], (height, width), rule, multimask)
            for i, mask in zip(batch, found, strict=True):
                masks[i] = mask
    return [
        BoxMask(filled_box(box, height, width), FROM_BOX) if mask is None else mask
        for box, mask in zip(boxes_xyxy, masks, strict=True)
    ]


def _prompt(
    segmenter: Segmenter,
    encoded: EncodedImage,
    boxes_P4: Box,
    size: tuple[int, int],
    rule: MaskRule,
    multimask: bool,
) -> list[BoxMask | None]:
    """The best acceptable mask of every box, or None; `size` is that of the image, height first."""
    decoded = segmenter.decode(encoded, None, None, torch.from_numpy(boxes_P4), multimask=multimask)
    ious_PM = decoded.predicted_iou.float().cpu().numpy()
    drawn = _full_size(segmenter, encoded, decoded.low_res_logits, size)
    found: list[BoxMask | None] = []
    for box, masks_MHW, ious_M in zip(boxes_P4, drawn, ious_PM, strict=True):
        cleaned = [clean_mask(mask_HW, box, rule) for mask_HW in masks_MHW]
        scores = [float(iou) for iou in ious_M]
        if rule.choice == "best-fit":
            # The network's estimate may leave 0..1; a negative one must not turn a bad fit into a good one.
            scores = [max(s, 0.0) * box_fit(mask, box) for s, mask in zip(scores, cleaned, strict=True)]
        ranked = sorted(range(len(cleaned)), key=lambda m: (-scores[m], m))
        smallest = max(1.0, rule.min_mask_area_fraction * _area(box))
        good = [m for m in ranked if cleaned[m].sum() >= smallest]
        if not good:
            found.append(None)
            continue
        retried = good[0] != ranked[0] or (multimask and rule.choice == "single")
        found.append(BoxMask(cleaned[good[0]], FROM_SECOND_TRY if retried else FROM_PROMPT))
    return found


def _full_size(
    segmenter: Segmenter, encoded: EncodedImage, logits_PMhw: torch.Tensor, size: tuple[int, int]
) -> Iterator[NDArray[np.bool_]]:
    """Masks (M, H, W) of every prompt; no more of them are held as numbers than `PIXELS_AT_ONCE` allows."""
    at_once = max(1, PIXELS_AT_ONCE // (logits_PMhw.shape[1] * size[0] * size[1]))
    for some_PMhw in torch.split(logits_PMhw, at_once):
        # In float32: half precision would move a mask's outline.
        yield from (segmenter.upscale(some_PMhw.float(), encoded) > segmenter.mask_threshold).cpu().numpy()


def box_fit(mask_HW: Mask, box_xyxy: NDArray[Any]) -> float:
    """IoU of a mask's tight box with a box, in [0, 1]; 0 for an empty mask."""
    if not mask_HW.any():
        return 0.0
    tight = mask_to_box(mask_HW)
    left, top = np.maximum(tight[:2], box_xyxy[:2])
    right, bottom = np.minimum(tight[2:], box_xyxy[2:])
    shared = float(max(0.0, right - left) * max(0.0, bottom - top))
    return shared / (_area(tight) + _area(box_xyxy) - shared)


def clean_mask(mask_HW: Mask, box_xyxy: NDArray[Any], rule: MaskRule) -> Mask:
    """Clear what lies outside the enlarged box, then keep the largest component (the first of equal ones)."""
    height, width = mask_HW.shape
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    dx, dy = rule.box_margin_fraction * (x2 - x1), rule.box_margin_fraction * (y2 - y1)
    allowed = filled_box(np.array([x1 - dx, y1 - dy, x2 + dx, y2 + dy]), height, width)
    clipped: Mask = mask_HW & allowed
    if not rule.largest_component or not clipped.any():
        return clipped
    _, labels_HW, statistics, _ = cv2.connectedComponentsWithStats(clipped.astype(np.uint8), connectivity=8)
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    component: Mask = labels_HW == largest
    return component


def filled_box(box_xyxy: NDArray[Any], height: int, width: int) -> Mask:
    """Pixels that a box touches, at least one."""
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    left, top = int(np.clip(np.floor(x1), 0, width - 1)), int(np.clip(np.floor(y1), 0, height - 1))
    right = int(np.clip(np.ceil(x2), left + 1, width))
    bottom = int(np.clip(np.ceil(y2), top + 1, height))
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def _area(box_xyxy: NDArray[Any]) -> float:
    return float(max(0.0, box_xyxy[2] - box_xyxy[0]) * max(0.0, box_xyxy[3] - box_xyxy[1]))
