"""What a promptable segmenter is: encode an image once, decode many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class EncodedImage:
    """An image embedding and where the image lies in the segmenter's square input.

    Attributes:
        embedding_1CHW: features on the segmenter's device.
        height, width: pixels of the original image.
        input_height, input_width: pixels of the image after scaling, before padding.
        input_size: side of the square input in pixels.
        via_input: whether full-size masks are interpolated to the square input first and from there to the
            image, as Segment Anything does, or at once.
        further: more features that the segmenter's own decoder asks for (SAM 2's finer levels).

    SAM scales the longest side to the square and pads below or to the right; SAM 2 squashes the image into
    all of it, then ``input_height`` and ``input_width`` are both ``input_size``.
    """

    embedding_1CHW: Tensor
    height: int
    width: int
    input_height: int
    input_width: int
    input_size: int
    via_input: bool = True
    further: tuple[Tensor, ...] = ()

    @property
    def frame_size(self) -> int:
        """Side of the square that masks are interpolated to first; 0 if there is none."""
        return self.input_size if self.via_input else 0

    def logit_extent(self, low_res_logits: Tensor) -> tuple[float, float]:
        """Height and width of the image in cells of ``(..., h, w)`` logits, from the top left corner."""
        height, width = low_res_logits.shape[-2:]
        return height * self.input_height / self.input_size, width * self.input_width / self.input_size


@dataclass(frozen=True)
class Decoded:
    """Answers to P prompts with M masks each.

    Attributes:
        low_res_logits: (P, M, h, w) over the padded square; inside where above ``mask_threshold``.
        predicted_iou: (P, M) the network's own estimate of each mask's IoU, about 0..1 but not clipped.
    """

    low_res_logits: Tensor
    predicted_iou: Tensor


@dataclass(frozen=True)
class SelectedMasks:
    """Masks whose predicted IoU passed.

    Attributes:
        prompt: ``(n,)`` int64, number of the prompt in the batch, ascending.
        mask_index: ``(n,)`` int64, which of the prompt's masks.
        logits_NHW: Low-resolution logits.
        predicted_iou_PK: Of every mask of every prompt, passed or not.
    """

    prompt: Tensor
    mask_index: Tensor
    logits_NHW: Tensor
    predicted_iou_PK: Tensor


class Segmenter(Protocol):
    """A promptable segmenter on a device; prompts and images are in original pixels, 0-based."""

    name: str
    mask_threshold: float

    def encode(self, image_HW3: NDArray[np.uint8]) -> EncodedImage:
        """Encode an RGB image, with exactly one call of the image encoder."""
        ...

    def encode_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[EncodedImage]:
        """Encode several RGB images of any sizes, with one call of the image encoder."""
        ...

    def decode(
        self, encoded: EncodedImage, points_PK2: Tensor | None, labels_PK: Tensor | None,
        boxes_P4: Tensor | None, *, multimask: bool,
    ) -> Decoded:  # fmt: skip
        """Decode P prompts: points with labels (1 inside, 0 outside, -1 padding), boxes, or both."""
        ...

    def decode_above(
        self, encoded: EncodedImage, points_PK2: Tensor | None, labels_PK: Tensor | None,
        boxes_P4: Tensor | None, *, multimask: bool, floor_PM: Tensor,
    ) -> SelectedMasks:  # fmt: skip
        """Decode P prompts, but draw only masks whose predicted IoU exceeds their floor."""
        ...

    def upscale(self, low_res_logits: Tensor, encoded: EncodedImage) -> Tensor:
        """Interpolate ``(..., h, w)`` logits to the original image, ``(..., H, W)``."""
        ...
