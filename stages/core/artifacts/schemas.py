"""The tables that stages hand to one another, column by column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.table_file import TableSchema

CORNERS = ("x1", "y1", "x2", "y2")
BOX_COLUMNS = dict.fromkeys(CORNERS, "float32")
"""Half-open xyxy pixels."""
RLE_COLUMNS = {"rle_start": "int64", "rle_count": "int64"}
"""Where a row's mask is in the pool `rle`; a count of 0 means no mask."""
RLE_POOL = {"rle": ("uint8", "rle_start", "rle_count")}
"""COCO's compressed run lengths, as bytes."""
IMAGE_SIZE = {"image_h": "int32", "image_w": "int32"}
"""Pixels."""

MAP_KINDS = ("coarse", "fine", "cross")
"""Names of ``kind`` / ``source`` 0, 1, 2 in ``cams.h5`` and ``prompts.h5``."""

SOURCE_BITS = {"grid": 1, "coarse": 2, "fine": 4, "cross": 8}
"""Bits of ``source`` in ``proposals.h5``; merging duplicates ORs them."""

CAMS = TableSchema(
    name="cams",
    version=1,
    columns={
        "class_index": "int32",  # 0-based
        "kind": "int8",  # index into MAP_KINDS
        "layer": "int16",  # 0-based attention layer of a cross map, else -1
        "head": "int16",  # 0-based attention head of a cross map, else -1
        "grid_h": "int32",  # cells of the map
        "grid_w": "int32",
        "value_start": "int64",
        "value_count": "int64",
    },
    image_columns=IMAGE_SIZE,  # the grid covers the image exactly
    pools={"values": ("float16", "value_start", "value_count")},  # row-major maps in [0, 1]
)

PROMPTS = TableSchema(
    name="prompts",
    version=1,
    columns={
        "x": "float32",  # image pixels, 0-based, pixel (0, 0) spans [0, 1)
        "y": "float32",
        "class_index": "int32",  # 0-based; -1 when a class-agnostic rule made the point
        "score": "float32",  # value of the normalised map, [0, 1]
        "source": "int8",  # index into MAP_KINDS
        "layer": "int16",
        "head": "int16",
        "cluster": "int32",  # members' cluster; -1 for coarse and fine
    },
    image_columns=IMAGE_SIZE,
)

EVIDENCE_VALUES = ("mass", "density", "ring")
"""What is stored of a map in a box; see `stages.core.ops.map_evidence`."""

PROPOSALS = TableSchema(
    name="proposals",
    version=2,  # 1 had no map evidence
    columns={
        **BOX_COLUMNS,
        "source": "int8",  # OR of SOURCE_BITS
        "class_index": "int32",  # class of the prompting point; -1 for the grid
        "peak_score": "float32",  # nan for the grid
        "predicted_iou": "float32",
        "stability": "float32",
        "mask_index": "int8",  # which of SAM's three masks
        **RLE_COLUMNS,
        "evidence_start": "int64",
        "evidence_count": "int64",  # 0 for an image without maps
        "evidence_class_start": "int64",
        "evidence_class_count": "int64",
    },
    image_columns=IMAGE_SIZE,
    pools={
        **RLE_POOL,
        # Per box the classes with maps, ascending, and for each of them MAP_KINDS x EVIDENCE_VALUES values in [0, 1];
        # nan for a kind without a map, or with one that is flat or not finite.
        "evidence_class": ("int32", "evidence_class_start", "evidence_class_count"),
        "evidence": ("float16", "evidence_start", "evidence_count"),
    },
)

SCHEMAS = {schema.name: schema for schema in (CAMS, PROMPTS, PROPOSALS)}


def rows_to_boxes(rows: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return the boxes (n, 4) of table rows."""
    return np.stack([rows[corner] for corner in CORNERS], axis=1)


def boxes_to_rows(boxes_xyxy: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the columns of table rows that hold boxes (n, 4)."""
    return dict(zip(CORNERS, boxes_xyxy.T, strict=True))
