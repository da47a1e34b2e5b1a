"""Detections of one image as table rows: the parts that resumable, sharded inference is cut into.

The final artifact of a detector is COCO JSON; this table only lives in `<out>/parts` until it is merged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.schemas import (
    BOX_COLUMNS,
    IMAGE_SIZE,
    RLE_COLUMNS,
    RLE_POOL,
    boxes_to_rows,
    rows_to_boxes,
)
from stages.core.artifacts.table import ImageRows, Table
from stages.core.artifacts.table_file import TableSchema
from stages.core.structures.detections import Detections
from stages.core.structures.rle import RLE

DETECTION_ROWS = TableSchema(
    name="detection-rows",
    version=1,
    columns={
        **BOX_COLUMNS,
        "class_index": "int32",  # 0-based
        "score": "float32",
        "origin": "int8",  # free for the stage: how the row came about; 0 if it does not say
        **RLE_COLUMNS,
    },
    image_columns=IMAGE_SIZE,
    pools=RLE_POOL,
)


def to_rows(
    detections: Detections, height: int, width: int, origin: NDArray[np.int8] | None = None
) -> ImageRows:
    """Rows of one image of `height` x `width` pixels."""
    count = len(detections)
    columns = boxes_to_rows(detections.boxes_xyxy) | {
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
        rows_to_boxes(rows).astype(np.float32),
        rows["class_index"].astype(np.int64),
        rows["score"].astype(np.float32),
        masks,
    )
