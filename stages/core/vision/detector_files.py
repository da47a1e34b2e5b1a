"""Checkpoints of detectors of any kind: which kind a file holds, and the detector rebuilt from it."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core.errors import SchemaError
from stages.core.training.weights_io import read_metadata
from stages.core.vision.detector_spec import Kind
from stages.core.vision.detectors import Detector, load_detector

KINDS: tuple[Kind, ...] = typing.get_args(Kind)


def detector_kind(path: Path) -> Kind:
    """Which detector a checkpoint holds, from its metadata alone.

    Raises:
        MissingInputError: no such file.
        SchemaError: no checkpoint of this project, or not one of a detector that needs only an image.
    """
    kind = _metadata(path)["model"]
    assert kind in KINDS
    return typing.cast(Kind, kind)


def detector_classes(path: Path) -> tuple[str, ...]:
    """Class names that a checkpoint was trained for, in order.

    Raises:
        MissingInputError, SchemaError: see :func:`detector_kind`.
    """
    return tuple(str(name) for name in _metadata(path)["classes"])


def open_detector(path: Path, classes: Sequence[str] | None = None) -> Detector:
    """Rebuild a detector of any kind from its file alone, in eval mode.

    Args:
        path: a file of `save_detector`.
        classes: the class list it must have been trained for, in order; None takes the file's.

    Raises:
        MissingInputError, SchemaError: see :func:`detector_kind` and `load_detector`.
    """
    return load_detector(path, detector_kind(path), classes)


def _metadata(path: Path) -> dict[str, Any]:
    metadata = read_metadata(path)
    held = metadata.get("model", metadata.get("kind"))
    if held not in KINDS or not isinstance(metadata.get("classes"), list):
        raise SchemaError(
            f"holds {held!r}, not a detector that finds boxes in an image alone",
            where=path,
            remedy="use detector.safetensors of retrain or segmenter.safetensors of wsis "
            "(the detector of wsod needs proposals)",
        )
    return metadata
