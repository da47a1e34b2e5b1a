"""Prompts in, filtered candidates out: one batch at a time, so that memory depends on the batch alone.

Filters run in the cheap order: predicted IoU (no pixel is looked at), then stability and box on the
low-resolution logits of what is left. Full-size masks are drawn only where a threshold or a side hangs on it,
or if they are to be stored, and then only for the boxes that survived everything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from stages.core.artifacts.schemas import SOURCE_BITS
from stages.core.errors import EnvironmentFault
from stages.core.segmenters.protocol import EncodedImage, Segmenter
from stages.core.structures.rle import encode_masks
from stages.propose.candidates import Candidates
from stages.propose.config import ProposeConfig
from stages.propose.logits.interpolation import LogitFrame
from stages.propose.logits.mask_boxes import mask_boxes
from stages.propose.logits.mask_quality import settled_stability, usable
from stages.propose.prompting import Array, Prompts, batches

PIXELS_PER_CHUNK = 2**25
"""Full-size mask pixels held at once when masks are stored: 128 MiB of logits."""

T = TypeVar("T")


class BatchSize:
    """Prompts per decoder call, halved for good whenever the GPU runs out of memory."""

    def __init__(self, size: int, log: logging.Logger) -> None:
        self.size = size
        self._log = log

    def attempt(self, work: Callable[[int], T]) -> T:
        """Run ``work(size)``, again with half the size while it runs out of CUDA memory.

        Raises:
            EnvironmentFault: a single prompt does not fit.
        """
        while True:
            try:
                return work(self.size)
            except torch.cuda.OutOfMemoryError as error:
                if self.size == 1:
                    hint = "use a smaller segmenter, a larger GPU, or --device cpu"
                    raise EnvironmentFault("one prompt does not fit into GPU memory", hint=hint) from error
            self.size //= 2
            torch.cuda.empty_cache()
            self._log.warning("out of GPU memory: going on with %d prompts per batch", self.size)


def decode_candidates(
    segmenter: Segmenter,
    encoded: EncodedImage,
    prompts: Prompts,
    config: ProposeConfig,
    batch_size: BatchSize,
) -> Candidates:
    """Candidates of all prompts on one encoded image, in the order of the prompts, then of the masks.

    Raises:
        EnvironmentFault: a single prompt does not fit into GPU memory.
    """
    parts = [Candidates.empty()]
    done = np.zeros(len(prompts), dtype=bool)
    while not done.all():
        batch_size.attempt(lambda size: _decode_rest(segmenter, encoded, prompts, config, size, done, parts))
    joined = Candidates.cat(parts)
    return joined[torch.argsort(joined.prompt * 8 + joined.mask_index, stable=True)]


def _decode_rest(
    segmenter: Segmenter, encoded: EncodedImage, prompts: Prompts, config: ProposeConfig,
    size: int, done: Array, parts: list[Candidates],
) -> None:  # fmt: skip
    for batch in batches(prompts, size, ~done):
        parts.append(decode_batch(segmenter, encoded, prompts, batch, config))
        done[batch] = True


def decode_batch(
    segmenter: Segmenter, encoded: EncodedImage, prompts: Prompts, batch: Array, config: ProposeConfig
) -> Candidates:
    """What remains of one batch after predicted IoU, stability and box, in this order of cost.

    Args:
        segmenter: Draws only masks whose predicted IoU passes.
        encoded: The image.
        prompts: All prompts of the image.
        batch: ``(p,)`` numbers of prompts with equally many points.
        config: Thresholds.
    """
    is_grid = torch.from_numpy(prompts.source[batch] == SOURCE_BITS["grid"])[:, None]
    floor = torch.where(is_grid, _floors(config.pred_iou_thresh, config.grid_masks),
                        _floors(config.prompt_pred_iou_thresh, config.prompt_masks))  # fmt: skip
    drawn = segmenter.decode_above(encoded, *_asked(prompts, batch), multimask=True, floor_PM=floor)
    frame = LogitFrame(
        encoded.height, encoded.width, *encoded.logit_extent(drawn.logits_NHW), encoded.frame_size
    )
    logits = drawn.logits_NHW.float()
    if segmenter.mask_threshold:
        logits = logits - segmenter.mask_threshold
    least = torch.where(is_grid, config.stability_score_thresh, config.prompt_stability_score_thresh)[
        :, 0
    ].to(logits.device)
    least = least[drawn.prompt]
    stability = settled_stability(logits, frame, config.stability_score_offset, least)
    # No stability at all (0 / 0) is no mask at all.
    good = (stability >= least).nonzero().squeeze(1)
    boxes = mask_boxes(logits if len(good) == len(logits) else logits[good], frame)
    large = usable(boxes, config.min_side_px, config.min_area_px)
    good, boxes = good[large], boxes[large]
    row, mask_index = drawn.prompt[good], drawn.mask_index[good]
    numbers = torch.from_numpy(batch)[row.cpu()]
    return Candidates(
        boxes_xyxy=boxes.cpu(),
        predicted_iou=drawn.predicted_iou_PK[row, mask_index].float().cpu(),
        stability=stability[good].cpu(),
        prompt=numbers,
        mask_index=mask_index.to(torch.int8).cpu(),
        source=torch.from_numpy(prompts.source)[numbers],
        class_index=torch.from_numpy(prompts.class_index)[numbers],
        peak_score=torch.from_numpy(prompts.peak_score)[numbers],
    )


def _asked(prompts: Prompts, batch: Array) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Points and their labels, or boxes, of a batch that has one or the other."""
    points = torch.from_numpy(np.stack([prompts.points[i] for i in batch]))
    if points.shape[1] == 0:
        return None, None, torch.from_numpy(prompts.boxes_xyxy[batch])
    return points, torch.ones(points.shape[:2], dtype=torch.int64), None


def _floors(threshold: float, wanted: tuple[int, ...]) -> Tensor:
    """Predicted IoU to exceed for each of the three masks, ``(1, 3)``."""
    # The network's estimate may leave 0..1: "no filter" must let everything pass.
    least = threshold if threshold > 0 else -float("inf")
    return torch.tensor([[least if index in wanted else float("inf") for index in range(3)]])


def encode_kept_masks(
    segmenter: Segmenter, encoded: EncodedImage, prompts: Prompts, kept: Candidates, batch_size: BatchSize,
    place: Callable[[Tensor], Tensor] = lambda masks_NHW: masks_NHW,
) -> list[Array]:  # fmt: skip
    """COCO RLE bytes of the masks of kept boxes.

    The few prompts behind the kept boxes are decoded once more: holding every candidate's logits until the
    last NMS would cost a gigabyte for a large grid.

    Args:
        segmenter, encoded, prompts, batch_size: As for :func:`decode_candidates`.
        kept: Candidates of these prompts.
        place: Applied to full-size binary masks ``(n, H, W)``, to lay a crop's onto the image.

    Returns:
        One uint8 array per box, in order.
    """
    wanted = np.zeros((len(prompts), 3), dtype=bool)
    wanted[kept.prompt.numpy(), kept.mask_index.numpy()] = True
    chunk = max(1, PIXELS_PER_CHUNK // (3 * encoded.height * encoded.width))
    found: dict[tuple[int, int], Array] = {}

    def decode_all(size: int) -> None:
        for batch in batches(prompts, min(size, chunk), np.asarray(wanted.any(axis=1))):
            floor = torch.where(torch.from_numpy(wanted[batch]), -float("inf"), float("inf"))
            drawn = segmenter.decode_above(encoded, *_asked(prompts, batch), multimask=True, floor_PM=floor)
            full = segmenter.upscale(drawn.logits_NHW, encoded) > segmenter.mask_threshold
            keys = zip(batch[drawn.prompt.cpu().numpy()].tolist(), drawn.mask_index.tolist(), strict=True)
            for key, rle in zip(keys, encode_masks(place(full).cpu().numpy()), strict=True):
                found[key] = np.frombuffer(rle["counts"].encode("ascii"), dtype=np.uint8)

    batch_size.attempt(decode_all)
    return [found[key] for key in zip(kept.prompt.tolist(), kept.mask_index.tolist(), strict=True)]
