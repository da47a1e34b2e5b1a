"""A trained detector applied to images: one image in, detections in its own pixels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stages.core.artifacts.detection_rows import DETECTION_ROWS, from_table, to_rows
from stages.core.artifacts.table import ImageRows
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.detectors.checkpoints import AnyDetector, DetectorFile
from stages.core.detectors.thin_images import check_not_thin
from stages.core.detectors.tta import detect_in_views
from stages.core.runtime.device import Precision, autocast
from stages.core.runtime.parts import ImageFunction, map_images
from stages.core.spec import StageContext
from stages.core.structures.detections import Detections
from stages.core.structures.instances import Instances


def detect(
    model: AnyDetector,
    pixels_HW3: NDArray[np.uint8],
    device: str = "cpu",
    precision: Precision = "fp32",
    view_sizes: Sequence[int] = (),
) -> Detections:
    """Detections of one RGB image, highest score first, in the image's own pixels.

    Masks are given when the model has a mask head; a mask is cut at probability 0.5 and may be empty.

    Args:
        model: in evaluation mode, on `device`.
        pixels_HW3: RGB, 0 to 255.
        device, precision: where and how the model runs.
        view_sizes: short sides of the views of test-time augmentation, pixels; none is the plain view alone.

    Raises:
        ImageError: so thin that a side vanishes at the detector's test size (other views are no smaller there).
        EnvironmentFault: memory holds none of the views.
    """
    height, width = pixels_HW3.shape[:2]
    check_not_thin(height, width, model.spec.test_short_side, model.spec.max_size)
    image = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1).to(device).float() / 255
    with torch.inference_mode(), autocast(device, precision):
        if view_sizes:
            return detect_in_views(model, image, view_sizes, device).detections()
        return Instances.from_torchvision(model([image])[0]).detections()


@dataclass(frozen=True)
class DetectorFactory:
    """Builds the per-image function inside a worker process; everything it holds can be pickled."""

    detector: DetectorFile
    split: WeakSplit
    device: str
    precision: Precision
    score: float | None = None
    view_sizes: tuple[int, ...] = ()

    def __call__(self) -> ImageFunction:
        """Load the model once and return image id -> rows."""
        model = self.detector.model().to(self.device)
        if self.score is not None:
            model.keep_from(self.score)

        def rows(image_id: str) -> ImageRows:
            pixels = load_image(self.split.image_path(image_id))
            found = detect(model, pixels, self.device, self.precision, self.view_sizes)
            return to_rows(found, pixels.shape[0], pixels.shape[1])

        return rows


def detect_split(
    context: StageContext,
    detector: DetectorFile,
    *,
    score: float | None = None,
    view_sizes: tuple[int, ...] = (),
) -> dict[str, Detections] | None:
    """Detections of every readable image of the context's split, resumable and sharded.

    Args:
        context: gives images, device, workers and the output folder.
        detector: the trained detector.
        score: least score of a detection; None takes the checkpoint's own.
        view_sizes: see `detect`.

    Returns:
        Image id -> detections, or None while other shards have parts to do.

    Raises:
        SchemaError: its tensors do not fit.
    """
    detector.model()  # fail here rather than in a worker
    factory = DetectorFactory(detector, context.split, context.device, context.precision, score, view_sizes)
    table = map_images(context, DETECTION_ROWS, factory, "detect")
    return None if table is None else from_table(table, with_masks=detector.gives_masks)
