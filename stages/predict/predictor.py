"""A detector and perhaps a segmenter as one function: an image in, detections out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stages.core.detectors.checkpoints import DetectorFile
from stages.core.detectors.inference import detect
from stages.core.runtime.device import Precision
from stages.core.structures.detections import Detections
from stages.predict.config import PredictConfig
from stages.predict.masking import build_masker

Predictor = Callable[[NDArray[np.uint8]], Detections]
"""RGB pixels (H, W, 3) -> detections from the least score on, highest score first, with masks where they are asked
for."""


def build_predictor(
    detector: DetectorFile, config: PredictConfig, device: str, precision: Precision
) -> Predictor:
    """Load the models onto a device and return the function that applies them.

    Raises:
        SchemaError: tensors that do not fit the detector's specification, or a damaged file.
        ConfigError: no such segmenter.
        EnvironmentFault: weights or a library are not there.
    """
    model = detector.model().to(device)
    # Only ever lowered: above its own threshold, the detector's outputs stay what they were at its training.
    if config.score_thresh < model.spec.score_thresh:
        model.keep_from(config.score_thresh)
    masked = build_masker(config, detector, device, precision)

    def predict(pixels: NDArray[np.uint8]) -> Detections:
        found = detect(model, pixels, device, precision, config.view_short_sides)
        return masked(pixels, found.reaching(config.score_thresh))

    return predict
