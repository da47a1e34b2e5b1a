"""Detectors of any kind: built from a specification, rebuilt from a checkpoint."""

from __future__ import annotations

import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from stages.core.artifacts.manifest import MANIFEST_NAME, read_manifest
from stages.core.detectors.detr import Detr, build_detr
from stages.core.detectors.spec import AnyKind, DetectorSpec, DetrSpec
from stages.core.detectors.two_stage.faster_rcnn import Detector, build_detector, load_detector, read_spec
from stages.core.errors import SchemaError
from stages.core.weights.checkpoints import load_weights, read_metadata

AnyDetector = Detector | Detr
KINDS: tuple[AnyKind, ...] = typing.get_args(AnyKind)
BOX_KINDS: tuple[AnyKind, ...] = tuple(kind for kind in KINDS if kind != "mask-rcnn")
"""What `retrain` can train."""


def build(spec: DetectorSpec | DetrSpec, classes: Sequence[str], pretrained: bool = True) -> AnyDetector:
    """Build a detector, its trunk with ImageNet weights unless `pretrained` is False.

    Raises:
        WeakSamError: see `build_detector` and `build_detr`.
    """
    if isinstance(spec, DetrSpec):
        return build_detr(spec, classes, pretrained)
    return build_detector(spec, classes, pretrained)


def detector_kind(path: Path) -> AnyKind:
    """Which detector a checkpoint holds, from its metadata alone.

    Raises:
        MissingInputError: no such file.
        SchemaError: no checkpoint of this project, or not one of a detector that needs only an image.
    """
    return typing.cast(AnyKind, _metadata(path)["model"])


def detector_classes(path: Path) -> tuple[str, ...]:
    """Class names that a checkpoint was trained for, in order.

    Raises:
        MissingInputError, SchemaError: see :func:`detector_kind`.
    """
    return tuple(str(name) for name in _metadata(path)["classes"])


def recorded_view_sizes(checkpoint: Path | None) -> tuple[int, ...]:
    """Short sides, pixels, of the views of a detector's training; none where no manifest beside it says so."""
    if checkpoint is None or not (checkpoint.parent / MANIFEST_NAME).is_file():
        return ()
    config = read_manifest(checkpoint.parent).config
    return tuple(config.get("tta_sizes") or config.get("train_sizes") or ())


def open_detector(
    path: Path, classes: Sequence[str] | None = None, kinds: Collection[AnyKind] = KINDS
) -> AnyDetector:
    """Rebuild a detector from its file alone, in eval mode.

    Args:
        path: a file of `save_detector`.
        classes: the class list it must have been trained for, in order; None takes the file's.
        kinds: what it may be.

    Raises:
        MissingInputError: no such file.
        SchemaError: another kind of model, other classes, or a specification or tensors that do not fit.
        EnvironmentFault: its kind needs an extra that is not installed.
    """
    kind = detector_kind(path)
    if kind not in kinds:
        raise SchemaError(
            f"was trained for model {kind!r}, {' or '.join(kinds)} is needed",
            where=path,
            hint="use a checkpoint of the right stage",
        )
    if kind in ("faster-rcnn", "mask-rcnn"):
        return load_detector(path, kind, classes)
    spec, own_classes = read_spec(path, DetrSpec, kind, classes)
    model = build_detr(spec, own_classes, pretrained=False)
    load_weights(path, model)
    return model.eval()


def _metadata(path: Path) -> dict[str, Any]:
    metadata = read_metadata(path)
    held = metadata.get("model", metadata.get("kind"))
    if held not in KINDS or not isinstance(metadata.get("classes"), list):
        raise SchemaError(
            f"holds {held!r}, not a detector that finds boxes in an image alone",
            where=path,
            hint="use detector.safetensors of retrain or segmenter.safetensors of wsis "
            "(the detector of wsod needs proposals)",
        )
    return metadata
