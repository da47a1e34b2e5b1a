"""Pseudo masks of a whole split: resumable, sharded by image, one segmenter per process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages.core.artifacts.coco_json import read_dataset
from stages.core.artifacts.detection_rows import DETECTION_ROWS, from_table, to_rows
from stages.core.artifacts.table import ImageRows
from stages.core.datasets.images import image_size, load_image
from stages.core.datasets.split import WeakSplit
from stages.core.errors import SchemaError
from stages.core.ops.mask_boxes import mask_to_box
from stages.core.runtime.device import Precision, autocast
from stages.core.runtime.parts import ImageFunction, map_images
from stages.core.segmenters.box_to_mask import (
    FROM_BOX,
    FROM_SECOND_TRY,
    MaskRule,
    masks_of_boxes,
    run_lengths,
)
from stages.core.spec import Counts, StageContext
from stages.core.structures.detections import Detections
from stages.wsis.config import WsisConfig


@dataclass(frozen=True)
class PseudoMasks:
    """Masks of a split.

    Attributes:
        masks: image id -> masks, their tight boxes, classes and scores of the pseudo boxes.
        sizes: image id -> (height, width), pixels.
        counts: for the manifest.
    """

    masks: dict[str, Detections]
    sizes: dict[str, tuple[int, int]]
    counts: Counts


@dataclass(frozen=True)
class MaskFactory:
    """Builds the per-image function inside a worker process."""

    pgt: Path
    split: WeakSplit
    config: WsisConfig
    device: str
    precision: Precision

    def __call__(self) -> ImageFunction:
        """Load pseudo boxes and segmenter once and return image id -> rows."""
        boxes_of = read_dataset(self.pgt, self.split).boxes
        if self.config.mask_source == "given":
            return lambda image_id: self._given(image_id, boxes_of.get(image_id, Detections.empty()))
        from stages.core.segmenters.loading import load_segmenter

        weights = self.config.segmenter_weights
        segmenter = load_segmenter(self.config.segmenter, Path(weights) if weights else None, self.device)
        rule = MaskRule.of(self.config)

        def rows(image_id: str) -> ImageRows:
            boxes = boxes_of.get(image_id, Detections.empty())
            path = self.split.image_path(image_id)
            if len(boxes) == 0:
                return to_rows(Detections.empty(), *image_size(path))
            pixels = load_image(path)
            with autocast(self.device, self.precision):
                found = masks_of_boxes(segmenter, pixels, boxes.boxes_xyxy, rule)
            tight = np.stack([mask_to_box(one.mask_HW) for one in found])
            masks = replace(boxes, boxes_xyxy=tight, masks=run_lengths(found))
            origin = np.array([one.origin for one in found], dtype=np.int8)
            return to_rows(masks, pixels.shape[0], pixels.shape[1], origin)

        return rows

    def _given(self, image_id: str, boxes: Detections) -> ImageRows:
        check_given(image_id, boxes, self.pgt)
        size = image_size(self.split.image_path(image_id))
        for mask in boxes.masks or ():
            if mask["size"] != list(size):
                raise SchemaError(
                    f"holds a mask of size {mask['size']} for image {image_id}, which is {list(size)}",
                    where=self.pgt,
                    hint="make the masks for the images of this split",
                )
        return to_rows(boxes, *size)


def check_given(image_id: str, boxes: Detections, path: Path) -> None:
    """Refuse boxes that should bring masks and do not.

    Raises:
        SchemaError: names the file and the image.
    """
    if len(boxes) and boxes.masks is None:
        raise SchemaError(
            f"holds boxes without masks for image {image_id}",
            where=path,
            hint="use --mask-source prompt, or a file with a segmentation for every box",
        )


def make_pseudo_masks(context: StageContext, config: WsisConfig) -> PseudoMasks:
    """Prompt the segmenter with every pseudo box of the context's split.

    Raises:
        SchemaError: the pseudo boxes are of another data set.
        EnvironmentFault: the segmenter's weights cannot be had.
    """
    factory = MaskFactory(context.input("pgt"), context.split, config, context.device, context.precision)
    # The detector's own parts lie in <out>/parts; these need another folder.
    inside = replace(context, out=context.out / "parts" / "masks", shard=(0, 1))
    table = map_images(inside, DETECTION_ROWS, factory, "masks", everywhere=True)
    assert table is not None, "a run without shards does all parts"
    origin = table.columns["origin"]
    sizes = {i: (row["image_h"], row["image_w"]) for i in table.ids for row in [table.image_row(i)]}
    counts: Counts = {
        "pseudo_masks": table.num_rows,
        "masks_at_second_try": int((origin == FROM_SECOND_TRY).sum()),
        "masks_filled_box": int((origin == FROM_BOX).sum()),
    }
    return PseudoMasks(from_table(table, with_masks=True), sizes, counts)
