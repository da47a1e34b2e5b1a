"""A trained detector applied to images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.core.datasets.images import load_image
from stages.core.errors import ImageError
from stages.core.structures.detections import Detections

if TYPE_CHECKING:
    from stages.core.detectors.checkpoints import DetectorFile
    from stages.core.runtime.device import Precision
    from stages.predict.config import PredictConfig
    from stages.predict.predictor import Predictor


class TrainedDetector:
    """A detector on a device, ready for images of any size.

    Attributes:
        file: The checkpoint: its path, kind and specification.
        device: Torch device string.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """

    def __init__(
        self, file: DetectorFile, device: str, precision: Precision, mask_settings: dict[str, Any]
    ) -> None:
        self.file = file
        self.device = device
        self.precision = precision
        self._mask_settings = mask_settings
        self._predictors: dict[PredictConfig, Predictor] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; :attr:`Detections.classes` holds their 0-based positions."""
        return self.file.classes

    @property
    def gives_masks(self) -> bool:
        """Whether the detector has a mask head of its own."""
        return self.file.gives_masks

    def predict(
        self,
        image: str | Path | NDArray[np.uint8],
        score_thresh: float = 0.3,
        *,
        masks: bool = False,
        view_short_sides: tuple[int, ...] = (),
    ) -> Detections:
        """Find the objects in an image.

        Args:
            image: A file, or RGB pixels, uint8 (H, W, 3).
            score_thresh: Least score of a detection, in [0, 1].
            masks: A mask for every box, of the detector's own mask head or of a segmenter prompted with the box.
            view_short_sides: Short sides, pixels, of the views of test-time augmentation; none = the plain view.

        Returns:
            Boxes in the image's own pixels, highest score first.

        Raises:
            ImageError: the image cannot be read, or is no RGB array.
            EnvironmentFault: weights or the library of the segmenter are not there.
        """
        return self._predictor(score_thresh, masks, view_short_sides)(_pixels(image))

    def _predictor(self, score_thresh: float, masks: bool, view_short_sides: tuple[int, ...]) -> Predictor:
        from stages.predict.config import PredictConfig
        from stages.predict.predictor import build_predictor

        config = PredictConfig(
            score_thresh=score_thresh,
            masks=masks,
            view_short_sides=view_short_sides,
            pictures=False,
            **self._mask_settings,
        )
        if config not in self._predictors:
            self._predictors[config] = build_predictor(self.file, config, self.device, self.precision)
        return self._predictors[config]


def open_detector(
    source: str | Path,
    stage: str = "retrain",
    *,
    device: str = "auto",
    precision: str = "auto",
    segmenter: str | None = None,
    segmenter_weights: str | Path | None = None,
) -> TrainedDetector:
    """Open the trained detector of a run, or any detector file.

    Args:
        source: A run folder, or a file ``detector.safetensors`` or ``segmenter.safetensors``.
        stage: Of a run: ``retrain`` for boxes, ``wsis`` for boxes and masks of the trained Mask R-CNN.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        segmenter: What makes masks for the boxes of a detector without a mask head; None is that of the run's
            ``wsis``, else ``sam-nano``.
        segmenter_weights: File of its weights, for segmenters that do not come with the package.

    Raises:
        MissingInputError: the stage has not finished in the run, or no such file.
        UsageError: several detectors to choose from, or a stage that trains none.
        SchemaError: a file that holds no detector.
        EnvironmentFault: the device is not there.
    """
    from stages.core.detectors.checkpoints import DetectorFile
    from stages.core.runtime.device import resolve_device, resolve_precision
    from stages.predict.trained_run import find_detector, mask_settings

    path = Path(source)
    run = path if path.is_dir() else None
    own = mask_settings(run)
    if segmenter is not None and segmenter != own.get("segmenter"):
        # Weights belong to the segmenter that they were given for.
        own = {**own, "segmenter": segmenter, "segmenter_weights": ""}
    if segmenter_weights is not None:
        own = {**own, "segmenter_weights": str(segmenter_weights)}
    where = resolve_device(device)
    file = DetectorFile.open(path if run is None else find_detector(run, stage))
    return TrainedDetector(file, where, resolve_precision(precision, where), own)


def _pixels(image: str | Path | NDArray[np.uint8]) -> NDArray[np.uint8]:
    if isinstance(image, str | Path):
        return load_image(Path(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            f"an array of {image.dtype} {image.shape}; RGB pixels are uint8 (H, W, 3)",
            hint="weaksam.load_image reads any image file as one",
        )
    return np.ascontiguousarray(image)
