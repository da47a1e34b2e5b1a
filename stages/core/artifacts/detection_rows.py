"""Detections of one image as table rows: the parts that resumable, sharded inference is cut into.

The final artifact of a detector is COCO JSON; this table only lives in `<out>/parts` until it is merged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.coco_fields import RLE
from stages.core.artifacts.coco_json import Detections
from stages.core.artifacts.table import ImageRows, Table, TableSchema

DETECTION_ROWS = TableSchema(
    name="detection-rows",
    version=1,
    columns={
        "x1": "float32",  # half-open pixels
        "y1": "float32",
        "x2": "float32",
        "y2": "float32",
        "class_index": "int32",  # 0-based
        "score": "float32",
        "origin": "int8",  # free for the stage: how the row came about; 0 if it does not say
        "rle_start": "int64",
        "rle_count": "int64",  # 0 without a mask
    },
    image_columns={"image_h": "int32", "image_w": "int32"},
    pools={"rle": ("uint8", "rle_start", "rle_count")},  # COCO compressed RLE bytes
)


def to_rows(
    detections: Detections, height: int, width: int, origin: NDArray[np.int8] | None = None
) -> ImageRows:
    """Rows of one image of `height` x `width` pixels."""
    boxes, count = detections.boxes_xyxy, len(detections)
    columns: dict[str, NDArray[Any]] = {name: boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
    columns |= {
        "class_index": detections.classes,
        "score": detections.scores,
        "origin": np.zeros(count, np.int8) if origin is None else origin,
    }
    texts = [""] * count if detections.masks is None else [mask["counts"] for mask in detections.masks]
    rle = [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
    return ImageRows(columns, {"image_h": height, "image_w": width}, {"rle": rle})


def from_table(table: Table, with_masks: bool) -> dict[str, Detections]:
    """Detections of every image of the table, in its order."""
    return {image_id: _one(table, image_id, with_masks) for image_id in table.ids}


def _one(table: Table, image_id: str, with_masks: bool) -> Detections:
    rows, image = table.rows(image_id), table.image_row(image_id)
    masks: list[RLE] | None = None
    if with_masks:
        size, pool = [image["image_h"], image["image_w"]], table.pools["rle"]
        spans = zip(rows["rle_start"].tolist(), rows["rle_count"].tolist(), strict=True)
        masks = [{"size": size, "counts": pool[start : start + n].tobytes().decode()} for start, n in spans]
    return Detections(
        np.stack([rows[name] for name in ("x1", "y1", "x2", "y2")], axis=1).astype(np.float32),
        rows["class_index"].astype(np.int64),
        rows["score"].astype(np.float32),
        masks,
    )
