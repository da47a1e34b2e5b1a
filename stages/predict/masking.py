"""A mask for every box: the detector's own, or one that a promptable segmenter gives when prompted with the box."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.core.detectors.checkpoints import DetectorFile
from stages.core.runtime.device import Precision, autocast
from stages.core.segmenters.box_to_mask import MaskRule, masks_of_boxes, run_lengths
from stages.core.segmenters.protocol import Segmenter
from stages.core.structures.detections import Detections
from stages.predict.config import PredictConfig

Masker = Callable[[NDArray[np.uint8], Detections], Detections]
"""(RGB pixels (H, W, 3), detections of the image) -> the same detections, with masks where they are asked for."""


def needs_segmenter(config: PredictConfig, detector: DetectorFile) -> bool:
    """Return whether masks are asked for that the detector itself does not give."""
    return config.masks and not detector.gives_masks


def open_segmenter(config: PredictConfig, device: str) -> Segmenter:
    """Load the segmenter that boxes prompt.

    Raises:
        ConfigError: no such segmenter.
        EnvironmentFault: its weights or its library are not there.
    """
    from stages.core.segmenters.loading import load_segmenter

    weights = Path(config.segmenter_weights) if config.segmenter_weights else None
    return load_segmenter(config.segmenter, weights, device)


def build_masker(config: PredictConfig, detector: DetectorFile, device: str, precision: Precision) -> Masker:
    """Return the function that adds masks to detections, or leaves them as they are."""
    if not needs_segmenter(config, detector):
        return lambda pixels, found: found
    segmenter, rule = open_segmenter(config, device), MaskRule.of(config)

    def masked(pixels: NDArray[np.uint8], found: Detections) -> Detections:
        with autocast(device, precision):
            masks = masks_of_boxes(segmenter, pixels, found.boxes_xyxy, rule)
        return found.with_masks(run_lengths(masks))

    return masked
