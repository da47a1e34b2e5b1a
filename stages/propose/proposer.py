"""All proposals of one image from one encoding of it, and of each of its crops."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.amg import uncrop_masks

from stages.core.artifacts.schemas import boxes_to_rows
from stages.core.artifacts.table import ImageRows
from stages.core.runtime.device import Precision, autocast
from stages.core.segmenters.protocol import EncodedImage, Segmenter
from stages.propose.candidates import Candidates
from stages.propose.config import ProposeConfig
from stages.propose.cropping import (
    Crop,
    image_crops,
    layer_points_per_side,
    merge_crops,
    uncropped,
    whole_in_crop,
)
from stages.propose.decoding import BatchSize, decode_candidates, encode_kept_masks
from stages.propose.grid import grid_points
from stages.propose.merging import merge_all
from stages.propose.prompting import Array, Prompts, build_prompts, valid_points
from stages.propose.refining import refine

CROPS_PER_CALL = 5
"""Crops that go through the image encoder together: the image and its first layer."""
_NO_ROWS = {name: np.zeros(0, np.float32) for name in ("x", "y", "source", "class_index", "score")}


@dataclass(frozen=True)
class _View:
    """What was asked and found in one crop; the encoding is kept only if masks are to be drawn."""

    crop: Crop
    encoded: EncodedImage | None
    prompts: Prompts
    found: Candidates


class Proposer:
    """Turns an image and its prompt points into the rows of ``proposals.h5``.

    Args:
        segmenter: Promptable segmenter, already on its device.
        config: Settings of the stage.
        device: Torch device string.
        precision: ``fp32``, or the dtype of autocast.
        log: Told when the batch size is halved.
    """

    def __init__(
        self, segmenter: Segmenter, config: ProposeConfig, device: str = "cpu", precision: Precision = "fp32",
        log: logging.Logger | None = None,
    ) -> None:  # fmt: skip
        self.segmenter, self.config = segmenter, config
        self.device, self.precision = device, precision
        self.batch_size = BatchSize(config.prompts_per_batch, log or logging.getLogger("weaksam"))

    @torch.inference_mode()
    def propose(self, image_HW3: NDArray[np.uint8], prompt_rows: Mapping[str, Array]) -> ImageRows:
        """Proposals of one image.

        Args:
            image_HW3: RGB, uint8.
            prompt_rows: The image's columns of ``prompts.h5``; rows outside the image or without a finite
                position are passed over.

        Raises:
            EnvironmentFault: a single prompt does not fit into GPU memory.
        """
        height, width = image_HW3.shape[:2]
        crops = image_crops(height, width, self.config)
        views: list[_View] = []
        with autocast(self.device, self.precision):
            for start in range(0, len(crops), CROPS_PER_CALL):
                group = crops[start : start + CROPS_PER_CALL]
                encoded = self.segmenter.encode_batch([crop.of(image_HW3) for crop in group])
                for crop, embedding in zip(group, encoded, strict=True):
                    views.append(self._look(crop, embedding, prompt_rows, height, width))
            kept = self._merged(views)
            masks = [np.zeros(0, dtype=np.uint8)] * len(kept)
            if self.config.save_masks and len(kept):
                masks = self._masks(views, kept, height, width)
        return _rows(kept, masks, height, width)

    def _look(
        self, crop: Crop, encoded: EncodedImage, prompt_rows: Mapping[str, Array], height: int, width: int
    ) -> _View:
        """Both passes over one crop; its candidates in pixels of the image."""
        prompts = (
            self.prompts(prompt_rows, height, width)
            if crop.layer == 0
            else self._crop_prompts(encoded, crop.layer)
        )
        # A layer of crops may ask again as often as the image.
        limit = -(-self.config.refine_top_k // 4**crop.layer)
        config = self.config.model_copy(update={"refine_top_k": limit})

        def whole(found: Candidates) -> Candidates:
            tolerance = self.config.crop_edge_tolerance_px
            return found[whole_in_crop(found.boxes_xyxy, crop, height, width, tolerance)]

        found = decode_candidates(self.segmenter, encoded, prompts, config, self.batch_size)
        prompts, kept = refine(self.segmenter, encoded, prompts, found, config, self.batch_size, whole)
        return _View(crop, encoded if self.config.save_masks else None, prompts, uncropped(kept, crop))

    def _merged(self, views: list[_View]) -> Candidates:
        """Candidates of all views; prompts are numbered through."""
        if len(views) == 1:
            return views[0].found
        first = np.cumsum([0, *(len(view.prompts) for view in views)])
        parts = [
            (view.crop, replace(view.found, prompt=view.found.prompt + int(start)))
            for view, start in zip(views, first[:-1], strict=True)
        ]
        return merge_all(merge_crops(parts, self.config.crop_nms_thresh), self.config)

    def _masks(self, views: list[_View], kept: Candidates, height: int, width: int) -> list[Array]:
        """RLE of every kept box's mask, from the view that its prompt was asked in."""
        masks = [np.zeros(0, dtype=np.uint8)] * len(kept)
        first = 0
        for view in views:
            own = ((kept.prompt >= first) & (kept.prompt < first + len(view.prompts))).nonzero().squeeze(1)
            if len(own) and view.encoded is not None:
                found = replace(kept[own], prompt=kept.prompt[own] - first)
                box = [view.crop.left, view.crop.top, view.crop.right, view.crop.bottom]
                encoded = encode_kept_masks(
                    self.segmenter, view.encoded, view.prompts, found, self.batch_size,
                    partial(uncrop_masks, crop_box=box, orig_h=height, orig_w=width),
                )  # fmt: skip
                for row, rle in zip(own.tolist(), encoded, strict=True):
                    masks[row] = rle
            first += len(view.prompts)
        return masks

    def _crop_prompts(self, encoded: EncodedImage, layer: int) -> Prompts:
        """Grid of a crop. Peaks are asked in the whole image alone."""
        grid = grid_points(layer_points_per_side(layer, self.config), encoded.height, encoded.width)
        return build_prompts(grid, _NO_ROWS, (), class_prompts=False)

    def prompts(self, prompt_rows: Mapping[str, Array], height: int, width: int) -> Prompts:
        """Grid and usable points of an image of ``height x width`` pixels, as prompts."""
        good = valid_points(prompt_rows, height, width)
        rows = {name: values[good] for name, values in prompt_rows.items()}
        grid = grid_points(self.config.points_per_side, height, width)
        config = self.config
        return build_prompts(grid, rows, config.prompt_sources, class_prompts=config.class_prompts)


def _rows(kept: Candidates, masks: list[Array], height: int, width: int) -> ImageRows:
    columns = boxes_to_rows(kept.boxes_xyxy.numpy())
    for name in ("source", "class_index", "peak_score", "predicted_iou", "stability", "mask_index"):
        columns[name] = getattr(kept, name).numpy()
    return ImageRows(columns, {"image_h": height, "image_w": width}, {"rle": masks})
