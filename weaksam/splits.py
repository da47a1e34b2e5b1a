"""Splits of data sets, and what a run has made of each image of one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.coco_json import read_dataset, read_results
from stages.core.artifacts.schemas import SCHEMAS
from stages.core.artifacts.table import Table, read_table
from stages.core.datasets import catalog
from stages.core.datasets.images import load_image
from stages.core.errors import MissingInputError, UsageError, did_you_mean
from stages.core.registry import CHAIN, stage_spec
from stages.core.spec import ArtifactKind
from stages.core.structures.detections import Detections
from weaksam.rows import ClassMaps, Prompts, Proposals

if TYPE_CHECKING:
    from stages.core.datasets.split import WeakSplit

MASKING_STAGE = "wsis"
"""Of the two stages that write pseudo ground truth, the one whose boxes have masks."""


def list_splits(data: str | Path | None = None) -> tuple[str, ...]:
    """Return the names of all splits, sorted; those of the embedded data set always.

    Args:
        data: Folder of data sets; None is ``$WEAKSAM_DATA``, else ``data``.
    """
    return catalog.list_splits(_data_root(data))


def open_split(name: str, data: str | Path | None = None) -> WeakSplit:
    """Open a split: its images and, on a train split, their tags. It cannot return boxes or masks.

    Args:
        name: ``<dataset>_<subset>``.
        data: Folder of data sets; None is ``$WEAKSAM_DATA``, else ``data``.

    Raises:
        MissingInputError: no such split; lists close matches.
        ConfigError, SchemaError: the data set is not described or annotated as it should be.
    """
    return catalog.open_split(name, _data_root(data))


def _data_root(given: str | Path | None) -> Path:
    return catalog.data_root(None if given is None else Path(given))


class SplitArtifacts:
    """What a run has made of the images of a split; files are read when they are first asked for, and once.

    Attributes:
        name: ``<dataset>_<subset>``.
        split: The images and their tags.
        folders: Stage -> folder of what has finished on this split.
        ids: Ids of the images that went through every stage, sorted; fewer than the split has after ``--limit``.
    """

    def __init__(self, split: WeakSplit, folders: Mapping[str, Path], limit: int | None = None) -> None:
        self.name = split.name
        self.split = split
        self.folders = dict(folders)
        self.ids = split.ids if limit is None else split.ids[:limit]
        self._tables: dict[Path, Table] = {}
        self._boxes: dict[Path, Mapping[str, Detections]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; arrays hold their 0-based positions."""
        return self.split.classes

    def image(self, image_id: str) -> NDArray[np.uint8]:
        """Return the pixels of an image, RGB (H, W, 3), upright.

        Raises:
            ImageError: it cannot be read.
        """
        return load_image(self.split.image_path(self._known(image_id)))

    def tags(self, image_id: str) -> tuple[str, ...]:
        """Return the names of the classes that an image of a train split is tagged with.

        Raises:
            GroundTruthForbiddenError: on a test split, whose tags are ground truth.
        """
        return tuple(self.classes[tag] for tag in self.split.tags(self._known(image_id)))

    def maps(self, image_id: str) -> ClassMaps:
        """Return the class maps that ``cam`` made."""
        return ClassMaps.of_image(self._table("cams"), self._known(image_id))

    def prompts(self, image_id: str) -> Prompts:
        """Return the points that ``prompt`` found in the maps."""
        return Prompts.of_image(self._table("prompts"), self._known(image_id))

    def proposals(self, image_id: str) -> Proposals:
        """Return the class-agnostic boxes of ``propose``."""
        return Proposals.of_image(self._table("proposals"), self._known(image_id))

    def detections(self, image_id: str, stage: str = "retrain") -> Detections:
        """Return the boxes that a detector found.

        Args:
            image_id: Which image.
            stage: ``wsod`` or ``retrain``.
        """
        makers = [name for name in CHAIN if _file_of("detections", name)]
        if stage not in makers:
            raise UsageError(f"'{stage}' writes no detections", hint=did_you_mean(stage, makers))
        return self._results("detections", stage)[self._known(image_id)]

    def pseudo_boxes(self, image_id: str) -> Detections:
        """Return the pseudo ground truth of ``pgt``; none where no detection was good enough."""
        return self._dataset(_maker("pgt")).get(self._known(image_id), Detections.empty())

    def pseudo_masks(self, image_id: str) -> Detections:
        """Return the pseudo ground truth with the masks that ``wsis`` made."""
        return self._dataset(MASKING_STAGE).get(self._known(image_id), Detections.empty())

    def segmentations(self, image_id: str) -> Detections:
        """Return the objects with masks that the instance segmenter of ``wsis`` found."""
        return self._results("segmentations", MASKING_STAGE)[self._known(image_id)]

    def _known(self, image_id: str) -> str:
        if image_id not in self._ids:
            raise UsageError(
                f"the run has no image '{image_id}' of {self.name}", hint=did_you_mean(image_id, self.ids)
            )
        return image_id

    @functools.cached_property
    def _ids(self) -> frozenset[str]:
        return frozenset(self.ids)

    def _path(self, kind: ArtifactKind, stage: str) -> Path:
        if stage not in self.folders:
            finished = ", ".join(self.folders)
            raise MissingInputError(
                f"{stage} has not finished on {self.name}; finished: {finished}",
                hint=f"weaksam.run_stage('{stage}', '{self.name}', ...), or `weaksam {stage} --split {self.name}`",
            )
        path = self.folders[stage] / _file_of(kind, stage)
        if not path.is_file():
            raise MissingInputError(
                f"{stage} writes no {path.name} on a split of this role", where=self.folders[stage]
            )
        return path

    def _table(self, kind: ArtifactKind) -> Table:
        path = self._path(kind, _maker(kind))
        if path not in self._tables:
            self._tables[path] = read_table(path, SCHEMAS[kind])
        return self._tables[path]

    def _results(self, kind: ArtifactKind, stage: str) -> Mapping[str, Detections]:
        path = self._path(kind, stage)
        if path not in self._boxes:
            self._boxes[path] = read_results(path, self.split)
        return self._boxes[path]

    def _dataset(self, stage: str) -> Mapping[str, Detections]:
        path = self._path("pgt", stage)
        if path not in self._boxes:
            self._boxes[path] = read_dataset(path, self.split).boxes
        return self._boxes[path]


def _maker(kind: ArtifactKind) -> str:
    """Return the first stage of the chain that writes an artifact of this kind."""
    return next(name for name in CHAIN if _file_of(kind, name))


def _file_of(kind: ArtifactKind, stage: str) -> str:
    """Return the name of the file in which a stage writes an artifact; empty if it writes none."""
    return next((one.file_name for one in stage_spec(stage).outputs if one.kind == kind), "")
