"""Detectors of any kind: built from a specification, rebuilt from a checkpoint."""

from __future__ import annotations

import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from stages.core.artifacts.manifest import MANIFEST_NAME, read_manifest
from stages.core.backbones.batch_norm_folding import fold_for_inference
from stages.core.detectors.detr import Detr, build_detr
from stages.core.detectors.mask2former import Mask2Former, build_mask2former
from stages.core.detectors.spec import AnyKind, AnySpec, DetectorSpec, DetrSpec, Kind, Mask2FormerSpec
from stages.core.detectors.two_stage.faster_rcnn import Detector, build_detector
from stages.core.errors import SchemaError
from stages.core.weights.checkpoints import load_tensors, read_metadata

AnyDetector = Detector | Detr | Mask2Former
KINDS: tuple[AnyKind, ...] = typing.get_args(AnyKind)
MASK_KINDS: tuple[AnyKind, ...] = ("mask-rcnn", "mask2former")
"""What `wsis` can train."""
BOX_KINDS: tuple[AnyKind, ...] = tuple(kind for kind in KINDS if kind not in MASK_KINDS)
"""What `retrain` can train."""
TWO_STAGE_KINDS: tuple[Kind, ...] = typing.get_args(Kind)


def build(spec: AnySpec, classes: Sequence[str], pretrained: bool | Path = True) -> AnyDetector:
    """Build a detector, its backbone with ImageNet weights (`pretrained`), a file's, or none (False).

    Raises:
        WeakSamError: see `build_detector`, `build_detr` and `build_mask2former`.
    """
    if isinstance(spec, DetrSpec):
        return build_detr(spec, classes, pretrained)
    if isinstance(spec, Mask2FormerSpec):
        return build_mask2former(spec, classes, pretrained)
    return build_detector(spec, classes, pretrained)


@dataclass
class DetectorFile:
    """The file of a trained detector: its metadata is read once, its model built once per process.

    A pickled copy, as worker processes get it, leaves the model behind: each process builds its own.

    Attributes:
        path: A file of `save_detector`.
        kind: Which detector it holds.
        classes: Names of the classes it was trained for, in order.
        spec: What it is rebuilt from.
    """

    path: Path
    kind: AnyKind
    classes: tuple[str, ...]
    spec: AnySpec
    _model: AnyDetector | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the metadata of a detector that finds boxes in an image alone.

        Raises:
            MissingInputError: no such file.
            SchemaError: no checkpoint of this project, one of another model, or an unusable specification.
        """
        metadata = read_metadata(path)
        kind, classes = metadata.get("model", metadata.get("kind")), metadata.get("classes")
        if kind not in KINDS or not isinstance(classes, list):
            raise SchemaError(
                f"holds {kind!r}, not a detector that finds boxes in an image alone",
                where=path,
                hint="use detector.safetensors of retrain or segmenter.safetensors of wsis "
                "(the detector of wsod needs proposals)",
            )
        spec_class: type[AnySpec] = DetectorSpec if kind in TWO_STAGE_KINDS else DetrSpec
        if kind == "mask2former":
            spec_class = Mask2FormerSpec
        try:
            spec: AnySpec = spec_class.model_validate(metadata.get("spec"))
        except ValidationError as error:
            raise SchemaError(f"holds no usable detector specification ({error})", where=path) from error
        return cls(path, kind, tuple(str(name) for name in classes), spec)

    @property
    def gives_masks(self) -> bool:
        """Whether its detections come with masks."""
        return self.kind in MASK_KINDS

    def check(self, classes: Sequence[str], kinds: Collection[str] = KINDS) -> None:
        """Refuse a detector of another kind, or for other classes.

        Args:
            classes: The class list it must have been trained for, in order.
            kinds: What it may be.

        Raises:
            SchemaError: which of the two it is.
        """
        if self.kind not in kinds:
            raise SchemaError(
                f"was trained for model {self.kind!r}, {' or '.join(kinds)} is needed",
                where=self.path,
                hint="use a checkpoint of the right stage",
            )
        if self.classes != tuple(classes):
            raise SchemaError(
                f"was trained for classes {list(self.classes)}, {list(classes)} is needed",
                where=self.path,
                hint="use the checkpoint trained on this data set's train split",
            )

    def model(self) -> AnyDetector:
        """Return the detector in evaluation mode; the same object on every call.

        Raises:
            SchemaError: tensors that do not fit the specification, or a damaged file.
            EnvironmentFault: its kind needs an extra that is not installed.
        """
        if self._model is None:
            model = build(self.spec, self.classes, pretrained=False)
            fold_for_inference(model)
            load_tensors(self.path, model)
            self._model = model.eval()
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}


def recorded_view_sizes(checkpoint: Path) -> tuple[int, ...]:
    """Return the short sides, pixels, of a detector's training; none where no manifest beside it says so."""
    if not (checkpoint.parent / MANIFEST_NAME).is_file():
        return ()
    config = read_manifest(checkpoint.parent).config
    return tuple(config.get("tta_short_sides") or config.get("train_short_sides") or ())
