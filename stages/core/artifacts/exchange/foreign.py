"""Files of the published release as artifacts of this project, and back: proposals, detections, pseudo boxes.

So that one stage can be checked alone. Images are known by the number that the release gives them: digits of a VOC
name, or COCO's id; a list of proposals has the order of the split's list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.coco_json import LabelSpace
from stages.core.artifacts.schemas import PROPOSALS, boxes_to_rows
from stages.core.artifacts.table import ImageRows, Table, gather
from stages.core.errors import SchemaError
from stages.core.structures.detections import Detections

Boxes = NDArray[np.float32]
WRONG_SPLIT = "give the split that the file was made for"


def image_numbers(split: LabelSpace, layout: str) -> dict[int, str]:
    """Image id by the release's number: 2008000002 is VOC's 2008_000002."""
    if layout == "coco":
        return {split.coco_id(image_id): image_id for image_id in split.ids}
    digits = {image_id: image_id.replace("_", "") for image_id in split.ids}
    return {int(number): image_id for image_id, number in digits.items() if number.isdecimal()}


def proposals_of(content: Any, split: LabelSpace, layout: str, inclusive: bool) -> dict[str, Boxes]:
    """Half-open boxes by image id from a list of arrays, or from a dict of `boxes` and `indexes`.

    Args:
        content: Plain data of the pickle; arrays of four columns (xyxy) or more, of which the rest is left out.
        split: The images.
        layout: `voc`, `coco` or `folder`.
        inclusive: Whether x2, y2 are the last pixel of a box (the release) or the one behind it.

    Raises:
        SchemaError: another form, another number of images, an unknown image, or boxes that are none.
    """
    if isinstance(content, dict) and {"boxes", "indexes"} <= content.keys():
        numbers = image_numbers(split, layout)
        ids = [_known(numbers, index, split) for index in content["indexes"]]
        arrays: Sequence[Any] = content["boxes"]
    elif isinstance(content, list):
        ids = sorted(split.ids, key=split.coco_id) if layout == "coco" else list(split.ids)
        arrays = content
    else:
        raise SchemaError(
            "expected a list of arrays, or a dict with 'boxes' and 'indexes'", where="proposals"
        )
    if len(arrays) != len(ids):
        raise SchemaError(
            f"holds proposals of {len(arrays)} images, split {split.name} has {len(ids)}",
            where="proposals",
            hint=WRONG_SPLIT,
        )
    return {image_id: _boxes(array, image_id, inclusive) for image_id, array in zip(ids, arrays, strict=True)}


def proposal_table(boxes: Mapping[str, Boxes], sizes: Mapping[str, tuple[int, int]]) -> Table:
    """`proposals.h5` of boxes alone: no source, no class, no score and no map evidence.

    Args:
        boxes: Image id -> (n, 4).
        sizes: Image id -> (height, width), pixels.
    """
    rows: dict[str, ImageRows] = {}
    for image_id in sorted(boxes):
        count, (height, width) = len(boxes[image_id]), sizes[image_id]
        unknown = np.full(count, math.nan, np.float32)
        columns = boxes_to_rows(boxes[image_id]) | {
            "source": np.zeros(count, np.int8), "class_index": np.full(count, -1), "peak_score": unknown,
            "predicted_iou": unknown, "stability": unknown, "mask_index": np.zeros(count, np.int8),
        }  # fmt: skip
        nothing: dict[str, list[NDArray[Any]]] = {
            name: [np.zeros(0, kind)] * count for name, (kind, _, _) in PROPOSALS.pools.items()
        }
        rows[image_id] = ImageRows(columns, {"image_h": height, "image_w": width}, nothing)
    return gather(PROPOSALS, rows)


def mist_detections(content: Any, split: LabelSpace, layout: str) -> dict[str, Detections]:
    """Detections of MIST's `bbox.json`: image names as text, categories from 1, xywh."""
    numbers = image_numbers(split, layout)

    def row(entry: Any) -> tuple[str, Sequence[float], int, float]:
        x, y, width, height = entry["bbox"]
        image = _known(numbers, str(entry["image_id"]).replace("_", ""), split)
        return image, (x, y, x + width, y + height), entry["category_id"] - 1, entry["score"]

    return _grouped(content, row, split, "detections")


def voc_pseudo_boxes(content: Any, split: LabelSpace, layout: str) -> dict[str, Detections]:
    """Pseudo boxes of a dict from image number to entries: categories from 0, xyxy, half-open."""
    numbers = image_numbers(split, layout)
    entries = [entry | {"image": key} for key, own in dict(content).items() for entry in own]

    def row(entry: Any) -> tuple[str, Sequence[float], int, float]:
        return (
            _known(numbers, entry["image"], split),
            entry["bbox"],
            entry["category_id"],
            entry.get("score", 1.0),
        )

    return _grouped(entries, row, split, "pseudo boxes")


def release_proposals(boxes: Mapping[str, Boxes], split: LabelSpace, layout: str) -> dict[str, Any]:
    """Return the dict that MIST reads: inclusive boxes, scores of one and numbers of the images.

    Raises:
        SchemaError: an image has no number.
    """
    numbers = _numbers_of(split, layout)
    ids = [image_id for image_id in split.ids if image_id in boxes]
    arrays = [boxes[image_id] - np.array([0, 0, 1, 1], np.float32) for image_id in ids]
    return {
        "boxes": arrays,
        "scores": [np.ones(len(own), np.float32) for own in arrays],
        "indexes": [numbers[image_id] for image_id in ids],
    }


def release_detections(found: Mapping[str, Detections], split: LabelSpace) -> list[dict[str, Any]]:
    """Return the entries of MIST's `bbox.json`: image names, categories from 1, xywh."""
    return [
        {
            "image_id": image_id,
            "category_id": int(own.classes[row]) + 1,
            "bbox": [
                float(v)
                for v in (*own.boxes_xyxy[row, :2], *np.ptp(own.boxes_xyxy[row].reshape(2, 2), axis=0))
            ],
            "score": float(own.scores[row]),
        }
        for image_id in split.ids
        if (own := found.get(image_id)) is not None
        for row in range(len(own))
    ]


def release_pseudo_boxes(
    found: Mapping[str, Detections], split: LabelSpace, layout: str
) -> dict[str, list[dict[str, Any]]]:
    """Return VOC's dict of pseudo boxes: image numbers as text, categories from 0, xyxy; no image without a box.

    Raises:
        SchemaError: an image has no number.
    """
    numbers = _numbers_of(split, layout)
    return {
        str(numbers[image_id]): [
            {
                "image_id": numbers[image_id],
                "category_id": int(own.classes[row]),
                "bbox": [float(value) for value in own.boxes_xyxy[row]],
                "score": float(own.scores[row]),
            }
            for row in range(len(own))
        ]
        for image_id, own in found.items()
        if len(own)
    }


def _numbers_of(split: LabelSpace, layout: str) -> dict[str, int]:
    numbers = {image_id: number for number, image_id in image_numbers(split, layout).items()}
    without = [image_id for image_id in split.ids if image_id not in numbers]
    if without:
        raise SchemaError(
            f"image {without[0]} has no number, which the release's files go by", where=split.name
        )
    return numbers


def _grouped(
    entries: Sequence[Any],
    row: Callable[[Any], tuple[str, Sequence[float], int, float]],
    split: LabelSpace,
    what: str,
) -> dict[str, Detections]:
    found: dict[str, list[tuple[Sequence[float], int, float]]] = {image_id: [] for image_id in split.ids}
    for position, entry in enumerate(entries):
        try:
            image_id, box, label, score = row(entry)
            numbers = [float(value) for value in (*box, score)]
            good = len(box) == 4 and all(map(math.isfinite, numbers)) and box[2] > box[0] and box[3] > box[1]
        except (KeyError, TypeError, ValueError) as error:
            raise SchemaError(f"entry {position} is none of the release's ({error!r})", where=what) from error
        if not good or not (isinstance(label, int) and 0 <= label < len(split.classes)):
            raise SchemaError(
                f"entry {position} has box {list(box)}, class {label}", where=what, hint=WRONG_SPLIT
            )
        found[image_id].append((box, label, score))
    return {
        image_id: Detections(
            np.array([box for box, _, _ in own], np.float32).reshape(-1, 4),
            np.array([label for _, label, _ in own], np.int64),
            np.array([score for _, _, score in own], np.float32),
        )
        for image_id, own in found.items()
    }


def _known(numbers: Mapping[int, str], number: Any, split: LabelSpace) -> str:
    try:
        return numbers[int(number)]
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"names image {number!r}, which is not in split {split.name}", where="image", hint=WRONG_SPLIT
        ) from error


def _boxes(array: Any, image_id: str, inclusive: bool) -> Boxes:
    boxes = np.asarray(array)
    if boxes.size == 0:
        return np.zeros((0, 4), np.float32)
    if boxes.ndim != 2 or boxes.shape[1] < 4 or boxes.dtype.kind not in "iuf":
        raise SchemaError(
            f"proposals of image {image_id} have shape {boxes.shape} of {boxes.dtype}, (n, 4) expected"
        )
    boxes = boxes[:, :4].astype(np.float32)
    if inclusive:
        boxes = boxes + np.array([0, 0, 1, 1], np.float32)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise SchemaError(f"a proposal of image {image_id} is no box: expected x1, y1, x2, y2 in pixels")
    return boxes
