"""Tiny truths and detections, by hand or at random, for the tests of the metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.structures.detections import Detections
from stages.core.structures.rle import RLE

Box = tuple[float, float, float, float]
WIDTH, HEIGHT = 60, 50


def true_image(
    objects: Sequence[tuple[int, Box]],
    *,
    difficult: Sequence[int] = (),
    crowd: Sequence[int] = (),
    masks: list[RLE] | None = None,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> ImageGroundTruth:
    """Ground truth of one image from (class, box) pairs; ``difficult`` and ``crowd`` are positions in the list."""
    n = len(objects)
    return ImageGroundTruth(
        width=size[1],
        height=size[0],
        boxes_xyxy=np.array([box for _, box in objects], dtype=np.float64).reshape(-1, 4),
        classes=np.array([label for label, _ in objects], dtype=np.int64),
        difficult=np.isin(np.arange(n), difficult),
        crowd=np.isin(np.arange(n), crowd),
        masks=masks,
    )


def found_boxes(rows: Sequence[tuple[int, float, Box]], masks: list[RLE] | None = None) -> Detections:
    """Detections of one image from (class, score, box) rows."""
    return Detections(
        boxes_xyxy=np.array([box for _, _, box in rows], dtype=np.float32).reshape(-1, 4),
        classes=np.array([label for label, _, _ in rows], dtype=np.int64),
        scores=np.array([score for _, score, _ in rows], dtype=np.float32),
        masks=masks,
    )


def rle_of(mask_HW: NDArray[np.bool_]) -> RLE:
    """A mask as COCO run lengths with text counts."""
    encoded = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return RLE(size=[int(v) for v in encoded["size"]], counts=encoded["counts"].decode())


def box_mask(box: Box, size: tuple[int, int] = (HEIGHT, WIDTH)) -> RLE:
    """The filled box, cut to the image."""
    mask = np.zeros(size, dtype=np.bool_)
    x1, y1, x2, y2 = (round(v) for v in box)
    mask[y1:y2, x1:x2] = True
    return rle_of(mask)


def _random_boxes(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    corner = rng.integers(0, 30, (n, 2))
    return np.concatenate([corner, corner + rng.integers(4, 25, (n, 2))], axis=1).astype(np.float64)


def random_case(
    seed: int,
    *,
    num_classes: int = 3,
    images: int = 6,
    distinct_scores: bool = False,
    ignored: bool = True,
    scale: int = 1,
) -> tuple[dict[str, Detections], dict[str, ImageGroundTruth]]:
    """Random ground truth and detections, many of them near an object, with ties in scores unless forbidden.

    The last class has no ground truth; some images have no objects, some no detections.
    """
    rng = np.random.default_rng(seed)
    detections: dict[str, Detections] = {}
    ground_truth: dict[str, ImageGroundTruth] = {}
    score_pool = rng.permutation(1000) / 1000
    used = 0
    for i in range(images):
        n = int(rng.integers(0, 5))
        boxes, classes = _random_boxes(rng, n), rng.integers(0, max(1, num_classes - 1), n)
        ground_truth[f"im{i}"] = ImageGroundTruth(
            width=WIDTH * scale,
            height=HEIGHT * scale,
            boxes_xyxy=boxes * scale,
            classes=classes.astype(np.int64),
            difficult=rng.random(n) < (0.25 if ignored else 0),
            crowd=np.zeros(n, dtype=np.bool_),
        )
        m = int(rng.integers(0, 9))
        near = rng.integers(0, n, m) if n else np.zeros(0, dtype=np.int64)
        found = _random_boxes(rng, m)
        labels = rng.integers(0, num_classes, m)
        if n:
            close = rng.random(m) < 0.7
            found[close] = (boxes[near] + rng.integers(-3, 4, (m, 4)))[close]
            labels[close] = classes[near][close]
        scores = score_pool[used : used + m] if distinct_scores else rng.integers(0, 5, m) / 4
        used += m
        if m:
            detections[f"im{i}"] = Detections(
                (found * scale).astype(np.float32), labels.astype(np.int64), scores.astype(np.float32)
            )
    return detections, ground_truth


def with_masks(
    detections: dict[str, Detections], ground_truth: dict[str, ImageGroundTruth], seed: int
) -> tuple[dict[str, Detections], dict[str, ImageGroundTruth]]:
    """The same with masks: the box with a random part of its pixels cut off from one side."""
    rng = np.random.default_rng(seed)

    def cut(box: NDArray[np.float32] | NDArray[np.float64], size: tuple[int, int]) -> RLE:
        x1, y1, x2, y2 = (float(v) for v in box)
        x1, y1 = max(x1, 0), max(y1, 0)
        return box_mask((x1, y1, max(x2 - int(rng.integers(0, 3)), x1 + 1), y2), size)

    found = {
        name: Detections(
            d.boxes_xyxy,
            d.classes,
            d.scores,
            [cut(box, (ground_truth[name].height, ground_truth[name].width)) for box in d.boxes_xyxy],
        )
        for name, d in detections.items()
    }
    true = {
        name: ImageGroundTruth(
            t.width,
            t.height,
            t.boxes_xyxy,
            t.classes,
            t.difficult,
            t.crowd,
            [cut(box, (t.height, t.width)) for box in t.boxes_xyxy],
        )
        for name, t in ground_truth.items()
    }
    return found, true
