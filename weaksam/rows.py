"""What the tables of a run hold of one image, as arrays: class maps, point prompts, proposals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.cams import stored_map
from stages.core.artifacts.schemas import MAP_KINDS, SOURCE_BITS, rows_to_boxes
from stages.core.artifacts.table import Table
from stages.core.errors import UsageError, did_you_mean
from stages.core.structures import rle
from stages.core.structures.columns import Column, Columns
from stages.core.structures.rle import RLE


@dataclass(frozen=True, eq=False)
class ClassMaps(Columns):
    """Class activation maps of one image, one row per map.

    Attributes:
        maps: n float32 arrays (grid height, grid width) in [0, 1]; a map covers its image exactly.
        classes: int64 (n,), 0-based.
        kinds: int64 (n,), index into ``MAP_KINDS``: coarse, fine, cross.
        layers: int64 (n,), attention layer of a cross map, else -1.
        heads: int64 (n,), attention head of a cross map, else -1.
    """

    maps: Annotated[list[NDArray[np.float32]], Column()]
    classes: Annotated[NDArray[np.int64], Column("int64")]
    kinds: Annotated[NDArray[np.int64], Column("int64")]
    layers: Annotated[NDArray[np.int64], Column("int64")]
    heads: Annotated[NDArray[np.int64], Column("int64")]

    @classmethod
    def of_image(cls, cams: Table, image_id: str) -> ClassMaps:
        """Read the maps of an image out of ``cams.h5``."""
        rows = cams.rows(image_id)
        maps = [stored_map(cams, rows, row, image_id) for row in range(len(rows["kind"]))]
        index = [rows[name].astype(np.int64) for name in ("class_index", "kind", "layer", "head")]
        return cls(maps, *index)

    def of(self, class_index: int, kind: str) -> ClassMaps:
        """Return the maps of a class and a kind (``coarse``, ``fine`` or ``cross``).

        Raises:
            UsageError: no such kind.
        """
        return self[(self.classes == class_index) & (self.kinds == _kind(kind))]

    def mean(self) -> NDArray[np.float32]:
        """Return the mean of these maps, (grid height, grid width).

        Raises:
            ValueError: no map, or maps of several sizes: choose a class and a kind with :meth:`of`.
        """
        if len({one.shape for one in self.maps}) != 1:
            raise ValueError("a mean needs maps, all of one size; choose a class and a kind with of()")
        mean: NDArray[np.float32] = np.mean(self.maps, axis=0, dtype=np.float32)
        return mean


@dataclass(frozen=True, eq=False)
class Prompts(Columns):
    """Point prompts of one image.

    Attributes:
        xy: float32 (n, 2), pixels; pixel (0, 0) spans [0, 1).
        classes: int64 (n,), 0-based; -1 where the point belongs to no class.
        scores: float32 (n,), value of the map at the point, in [0, 1].
        kinds: int64 (n,), index into ``MAP_KINDS`` of the map that brought the point.
        clusters: int64 (n,), number of the cluster of a cross-attention point, else -1.
    """

    xy: Annotated[NDArray[np.float32], Column("float32", 2)]
    classes: Annotated[NDArray[np.int64], Column("int64")]
    scores: Annotated[NDArray[np.float32], Column("float32")]
    kinds: Annotated[NDArray[np.int64], Column("int64")]
    clusters: Annotated[NDArray[np.int64], Column("int64")]

    @classmethod
    def of_image(cls, prompts: Table, image_id: str) -> Prompts:
        """Read the points of an image out of ``prompts.h5``."""
        rows = prompts.rows(image_id)
        return cls(
            np.stack([rows["x"], rows["y"]], axis=1).astype(np.float32),
            rows["class_index"].astype(np.int64),
            rows["score"].astype(np.float32),
            rows["source"].astype(np.int64),
            rows["cluster"].astype(np.int64),
        )

    def of_kind(self, kind: str) -> Prompts:
        """Return the points that a kind of map brought (``coarse``, ``fine`` or ``cross``).

        Raises:
            UsageError: no such kind.
        """
        return self[self.kinds == _kind(kind)]


@dataclass(frozen=True, eq=False)
class Proposals(Columns):
    """Class-agnostic boxes of one image.

    Attributes:
        boxes_xyxy: float32 (n, 4), half-open pixels.
        sources: int64 (n,), OR of ``SOURCE_BITS``: which prompts found the box.
        classes: int64 (n,), class of the prompting point; -1 for the grid.
        peak_scores: float32 (n,), value of the map at the prompting point; nan for the grid.
        predicted_iou: float32 (n,), the segmenter's own estimate of its mask.
        stability: float32 (n,), IoU of the mask at a stricter and at a laxer threshold.
        masks: n run-length masks of the whole image, or None where ``propose.save_masks`` was off.
    """

    boxes_xyxy: Annotated[NDArray[np.float32], Column("float32", 4)]
    sources: Annotated[NDArray[np.int64], Column("int64")]
    classes: Annotated[NDArray[np.int64], Column("int64")]
    peak_scores: Annotated[NDArray[np.float32], Column("float32")]
    predicted_iou: Annotated[NDArray[np.float32], Column("float32")]
    stability: Annotated[NDArray[np.float32], Column("float32")]
    masks: Annotated[list[RLE] | None, Column()] = None

    @classmethod
    def of_image(cls, proposals: Table, image_id: str) -> Proposals:
        """Read the boxes of an image out of ``proposals.h5``."""
        rows = proposals.rows(image_id)
        return cls(
            rows_to_boxes(rows).astype(np.float32),
            rows["source"].astype(np.int64),
            rows["class_index"].astype(np.int64),
            rows["peak_score"].astype(np.float32),
            rows["predicted_iou"].astype(np.float32),
            rows["stability"].astype(np.float32),
            _stored_masks(proposals, image_id),
        )

    def from_source(self, source: str) -> Proposals:
        """Return the boxes that a source found, perhaps among others (``grid``, ``coarse``, ``fine`` or ``cross``).

        Raises:
            UsageError: no such source.
        """
        if source not in SOURCE_BITS:
            raise UsageError(f"'{source}' is no source of prompts", hint=did_you_mean(source, SOURCE_BITS))
        return self[(self.sources & SOURCE_BITS[source]) > 0]


def decode_masks(masks: Sequence[RLE]) -> NDArray[np.bool_]:
    """Return run-length masks of one image as arrays, (n, H, W); (0, 0, 0) for none.

    Raises:
        ValueError: masks of several sizes.
    """
    if not masks:
        return np.zeros((0, 0, 0), np.bool_)
    height, width = masks[0]["size"]
    return rle.decode_masks(masks, height, width).astype(np.bool_)


def _kind(name: str) -> int:
    if name not in MAP_KINDS:
        raise UsageError(f"'{name}' is no kind of map", hint=did_you_mean(name, MAP_KINDS))
    return MAP_KINDS.index(name)


def _stored_masks(table: Table, image_id: str) -> list[RLE] | None:
    """Return the masks of an image's rows; None where the table has none."""
    rows = table.rows(image_id)
    if not len(rows["rle_count"]) or not rows["rle_count"].all():
        return None
    image, pool = table.image_row(image_id), table.pools["rle"]
    spans = zip(rows["rle_start"].tolist(), rows["rle_count"].tolist(), strict=True)
    return [
        {"size": [image["image_h"], image["image_w"]], "counts": pool[start : start + n].tobytes().decode()}
        for start, n in spans
    ]
