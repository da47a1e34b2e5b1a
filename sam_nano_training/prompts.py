"""Prompts and targets for one drawn scene: what a user could click or frame, and which masks would be right.

A single click is ambiguous: every mask under it (part, object, pile) is a right answer. Several clicks or a box
mean one mask only (Kirillov et al. 2023, section 3, "Resolving ambiguity").
"""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam_nano_training.scenes import Level, Scene

MAX_TARGETS: Final = 3
MAX_POINTS: Final = 4
LOW_RES: Final = 128
BAND_RADIUS: Final = 3


@dataclass(frozen=True)
class PromptBatch:
    """P prompts of one image, all of them clicks or all of them boxes.

    Attributes:
        points_PK2, labels_PK: clicks in pixels; label 1 inside, 0 outside, -1 padding. None for boxes.
        boxes_P4: xyxy in pixels. None for clicks.
        targets_PTHW: right answers on the low-resolution grid, coverage 0..1.
        bands_PTHW: 1 near each target's outline.
        valid_PT: which targets exist; the first always does.
        single_P: the prompt means exactly one mask.
    """

    points_PK2: Tensor | None
    labels_PK: Tensor | None
    boxes_P4: Tensor | None
    targets_PTHW: Tensor
    bands_PTHW: Tensor
    valid_PT: Tensor
    single_P: Tensor


def outline_band(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Marks pixels within `BAND_RADIUS` of a mask's outline with 1."""
    kernel = np.ones((2 * BAND_RADIUS + 1, 2 * BAND_RADIUS + 1), dtype=np.uint8)
    inside = (mask > 127).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(inside, cv2.MORPH_GRADIENT, kernel), dtype=np.uint8)


def sample_click(rng: np.random.Generator, mask: NDArray[np.uint8]) -> tuple[float, float]:
    """Draws a point inside a mask, away from its outline, in half of the cases near its middle."""
    left, top, width, height = cv2.boundingRect(mask)
    inside = cv2.copyMakeBorder(
        (mask[top : top + height, left : left + width] > 127).astype(np.uint8),
        1,
        1,
        1,
        1,
        cv2.BORDER_CONSTANT,
    )
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
    deepest = float(depth.max())
    least = 0.7 * deepest if rng.random() < 0.4 else min(2.0, 0.4 * deepest)
    rows, columns = np.nonzero((depth >= least) & (depth > 0))
    pick = int(rng.integers(len(rows)))
    return float(columns[pick] + left + 0.5), float(rows[pick] + top + 0.5)


def _sample_outside(rng: np.random.Generator, mask: NDArray[np.uint8]) -> tuple[float, float] | None:
    """Draws a point near a mask but clearly outside it."""
    left, top, width, height = cv2.boundingRect(mask)
    for _ in range(8):
        column = left + width * rng.uniform(-0.3, 1.3)
        row = top + height * rng.uniform(-0.3, 1.3)
        if 0 <= column < mask.shape[1] and 0 <= row < mask.shape[0] and mask[int(row), int(column)] < 8:
            return float(column), float(row)
    return None


def _jittered_box(rng: np.random.Generator, mask: NDArray[np.uint8]) -> list[float]:
    left, top, width, height = cv2.boundingRect((mask > 127).astype(np.uint8))
    scale = rng.choice([0.0, 0.03, 0.1])
    noise = np.clip(rng.normal(0, scale, 4), -0.2, 0.2) * [width, height, width, height]
    box = np.array([left, top, left + width, top + height]) + noise
    return [float(side) for side in np.clip(box, 0, mask.shape[0])]


def _pick_masks(rng: np.random.Generator, scene: Scene, count: int) -> NDArray[np.int64]:
    """Draws mask indices, objects more often than parts; repeats only when there are too few."""
    weight = np.choose(scene.levels, [1.5, 1.0, 0.4])
    weight = weight / weight.sum()
    unique = min(count, len(weight))
    first = rng.choice(len(weight), size=unique, replace=False, p=weight)
    return np.concatenate([first, rng.choice(len(weight), size=count - unique, p=weight)])


def _clicks(
    rng: np.random.Generator, scene: Scene, index: int
) -> tuple[list[tuple[float, float]], list[int], list[int]]:
    """Draws the clicks of one prompt with their labels and the indices of the right masks."""
    mask = scene.masks[index]
    clicks, labels = [sample_click(rng, mask)], [1]
    if rng.random() < 0.75:
        column, row = int(clicks[0][0]), int(clicks[0][1])
        others = [int(i) for i in np.nonzero(scene.masks[:, row, column] > 127)[0] if i != index]
        # An object is named before its siblings in the hierarchy, should there be too many.
        others.sort(key=lambda i: abs(int(scene.levels[i]) - Level.OBJECT))
        return clicks, labels, [index, *others[: MAX_TARGETS - 1]]
    for _ in range(int(rng.integers(1, MAX_POINTS))):
        outside = _sample_outside(rng, mask) if rng.random() < 0.3 else None
        clicks.append(outside or sample_click(rng, mask))
        labels.append(0 if outside else 1)
    return clicks, labels, [index]


def sample_prompts(
    rng: np.random.Generator, scene: Scene, count: int, box_share: float = 0.25
) -> PromptBatch:
    """Draws `count` prompts for a scene; with chance `box_share` they are boxes, else clicks."""
    chosen = _pick_masks(rng, scene, count)
    size = scene.masks.shape[1]
    low = LOW_RES * size // 256
    targets = np.zeros((count, MAX_TARGETS, low, low), dtype=np.float32)
    bands = np.zeros_like(targets)
    valid = np.zeros((count, MAX_TARGETS), dtype=bool)
    single = np.ones(count, dtype=bool)
    points = np.zeros((count, MAX_POINTS, 2), dtype=np.float32)
    labels = np.full((count, MAX_POINTS), -1, dtype=np.float32)
    boxes = np.zeros((count, 4), dtype=np.float32)
    as_boxes = bool(rng.random() < box_share)
    for row, index in enumerate(int(i) for i in chosen):
        answers = [index]
        if as_boxes:
            boxes[row] = _jittered_box(rng, scene.masks[index])
        else:
            clicks, click_labels, answers = _clicks(rng, scene, index)
            points[row, : len(clicks)], labels[row, : len(clicks)] = clicks, click_labels
            single[row] = len(clicks) > 1
        for column, answer in enumerate(answers):
            small = cv2.resize(scene.masks[answer], (low, low), interpolation=cv2.INTER_AREA)
            targets[row, column] = small.astype(np.float32) / 255
            bands[row, column] = outline_band(small)
            valid[row, column] = True
    used = max(int((labels >= 0).sum(axis=1).max()), 1)
    return PromptBatch(
        points_PK2=None if as_boxes else torch.from_numpy(points[:, :used]),
        labels_PK=None if as_boxes else torch.from_numpy(labels[:, :used]),
        boxes_P4=torch.from_numpy(boxes) if as_boxes else None,
        targets_PTHW=torch.from_numpy(targets),
        bands_PTHW=torch.from_numpy(bands),
        valid_PT=torch.from_numpy(valid),
        single_P=torch.from_numpy(single),
    )
