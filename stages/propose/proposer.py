"""All proposals of one image from one encoding of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from stages.core.artifacts.table import ImageRows
from stages.core.runtime.device import Precision, autocast
from stages.core.segmenters.protocol import Segmenter
from stages.propose.candidates import Candidates
from stages.propose.config import ProposeConfig
from stages.propose.decoding import BatchSize, decode_candidates, encode_kept_masks
from stages.propose.grid import grid_points
from stages.propose.prompting import Array, Prompts, build_prompts, valid_points
from stages.propose.refining import refine


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
        self.batch_size = BatchSize(config.points_per_batch, log or logging.getLogger("weaksam"))

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
        prompts = self.prompts(prompt_rows, *image_HW3.shape[:2])
        with autocast(self.device, self.precision):
            encoded = self.segmenter.encode(image_HW3)
            found = decode_candidates(self.segmenter, encoded, prompts, self.config, self.batch_size)
            prompts, kept = refine(self.segmenter, encoded, prompts, found, self.config, self.batch_size)
            masks = [np.zeros(0, dtype=np.uint8)] * len(kept)
            if self.config.save_masks and len(kept):
                masks = encode_kept_masks(self.segmenter, encoded, prompts, kept, self.batch_size)
        return _rows(kept, masks, *image_HW3.shape[:2])

    def prompts(self, prompt_rows: Mapping[str, Array], height: int, width: int) -> Prompts:
        """Grid and usable points of an image of ``height x width`` pixels, as prompts."""
        good = valid_points(prompt_rows, height, width)
        rows = {name: values[good] for name, values in prompt_rows.items()}
        grid = grid_points(self.config.grid_side, height, width)
        config = self.config
        return build_prompts(grid, rows, config.prompt_sources, class_prompts=config.class_prompts)


def _rows(kept: Candidates, masks: list[Array], height: int, width: int) -> ImageRows:
    boxes = kept.boxes_xyxy.numpy()
    columns = {name: boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
    for name in ("source", "class_index", "peak_score", "predicted_iou", "stability", "mask_index"):
        columns[name] = getattr(kept, name).numpy()
    return ImageRows(columns, {"image_h": height, "image_w": width}, {"rle": masks})
