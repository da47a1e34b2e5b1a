"""Promptable segmenters behind one small interface: encode an image once, decode many prompts.

Rooms know :class:`Segmenter` only; :class:`SamSegmenter` adapts any ``segment_anything`` model to it
(Kirillov et al., "Segment Anything", 2023), from the shipped sam-nano to ViT-H; ``hf_segmenters.py`` adapts
SAM 2, HQ-SAM and EdgeTAM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor

from stages.core.errors import ImageError
from stages.core.vision.folded_decoder import FoldedMaskDecoder, SelectedMasks
from stages.core.vision.sam_attention import fuse_attention
from stages.core.vision.sam_loading import NANO, load_sam
from stages.core.weights.cache import cached_weights
from stages.core.weights.table import segmenter_kind


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


class Segmenter(Protocol):
    """A promptable segmenter on a device; prompts and images are in original pixels, 0-based."""

    name: str
    mask_threshold: float

    def encode(self, image_HW3: NDArray[np.uint8]) -> EncodedImage:
        """Encode an RGB image, with exactly one call of the image encoder."""
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


class SamSegmenter:
    """A ``segment_anything`` model as a :class:`Segmenter`.

    Prompts are decoded by :class:`FoldedMaskDecoder`, which computes what the library's decoder computes, and the
    image encoder's attention runs fused.

    Args:
        name: What the model is called in settings and messages.
        sam: The model, already on its device; put into evaluation mode.
    """

    def __init__(self, name: str, sam: Sam) -> None:
        self.name = name
        self.sam: Any = sam.eval()
        self.mask_threshold = float(sam.mask_threshold)
        self._predictor = SamPredictor(sam)
        self._decoder = FoldedMaskDecoder(sam.mask_decoder)
        fuse_attention(sam.image_encoder)

    def compile(self, backend: str = "inductor") -> None:
        """Compile the image encoder for its one static shape; the first image then takes minutes longer."""
        self.sam.image_encoder.compile(backend=backend, dynamic=False)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return torch.device(self.sam.device)

    @torch.no_grad()
    def encode(self, image_HW3: NDArray[np.uint8]) -> EncodedImage:
        """Encode an RGB image, with exactly one call of the image encoder.

        Args:
            image_HW3: uint8, any size; scaled to the model's input by its longest side and padded.

        Raises:
            ImageError: so thin that a side vanishes in the scaled input.
        """
        height, width = image_HW3.shape[:2]
        size = int(self.sam.image_encoder.img_size)
        if min(self._predictor.transform.get_preprocess_shape(height, width, size)) < 1:
            raise ImageError(
                f"an image of {width} x {height} px is too thin for the {size} px input of {self.name}"
            )
        self._predictor.set_image(image_HW3)
        input_height, input_width = self._predictor.input_size
        encoded = EncodedImage(self._predictor.features, height, width, input_height, input_width, size)
        # The embedding belongs to the caller; nothing of the image stays behind.
        self._predictor.reset_image()
        return encoded

    @torch.no_grad()
    def decode(
        self, encoded: EncodedImage, points_PK2: Tensor | None, labels_PK: Tensor | None,
        boxes_P4: Tensor | None, *, multimask: bool,
    ) -> Decoded:  # fmt: skip
        """Decode P prompts on one image.

        Args:
            encoded: From :meth:`encode` of this segmenter.
            points_PK2: x, y in original pixels, or None.
            labels_PK: 1 inside, 0 outside, -1 padding; None exactly if there are no points.
            boxes_P4: xyxy in original pixels, or None.
            multimask: Three masks for an ambiguous prompt (M = 3), or the single one (M = 1).
        """
        drawn = self._run(encoded, points_PK2, labels_PK, boxes_P4, multimask, None)
        prompts, masks = drawn.predicted_iou_PK.shape
        shape = (prompts, masks, *drawn.logits_NHW.shape[-2:])
        return Decoded(drawn.logits_NHW.reshape(shape), drawn.predicted_iou_PK)

    @torch.no_grad()
    def decode_above(
        self, encoded: EncodedImage, points_PK2: Tensor | None, labels_PK: Tensor | None,
        boxes_P4: Tensor | None, *, multimask: bool, floor_PM: Tensor,
    ) -> SelectedMasks:  # fmt: skip
        """Decode P prompts, but draw only masks whose predicted IoU exceeds their floor.

        Args:
            encoded, points_PK2, labels_PK, boxes_P4, multimask: As for :meth:`decode`.
            floor_PM: Least predicted IoU of every mask, exclusive; infinity draws it under no circumstances.
        """
        return self._run(encoded, points_PK2, labels_PK, boxes_P4, multimask, floor_PM.to(self.device))

    @torch.no_grad()
    def upscale(self, low_res_logits: Tensor, encoded: EncodedImage) -> Tensor:
        """Interpolate ``(..., h, w)`` logits to the original image, ``(..., H, W)``, as the library does."""
        leading, cells = low_res_logits.shape[:-2], low_res_logits.shape[-2:]
        size, input_size = (encoded.height, encoded.width), (encoded.input_height, encoded.input_width)
        if low_res_logits.numel() == 0:
            return low_res_logits.new_zeros((*leading, *size))
        full: Tensor = self.sam.postprocess_masks(low_res_logits.reshape(-1, 1, *cells), input_size, size)
        return full.reshape(*leading, *size)

    def _run(
        self, encoded: EncodedImage, points_PK2: Tensor | None, labels_PK: Tensor | None,
        boxes_P4: Tensor | None, multimask: bool, floor_PM: Tensor | None,
    ) -> SelectedMasks:  # fmt: skip
        assert (points_PK2 is None) == (labels_PK is None), "points and labels come together"
        assert points_PK2 is not None or boxes_P4 is not None, "a prompt needs points or a box"
        points = None
        if points_PK2 is not None and labels_PK is not None:
            points = (self._scaled(points_PK2, encoded), labels_PK.to(self.device))
        boxes = None
        if boxes_P4 is not None:
            boxes = self._scaled(boxes_P4.reshape(-1, 2, 2), encoded).reshape(-1, 4)
        sparse, dense = self.sam.prompt_encoder(points=points, boxes=boxes, masks=None)
        return self._decoder.decode(
            encoded.embedding_1CHW, self.sam.prompt_encoder.get_dense_pe(), sparse, dense[:1],
            multimask=multimask, floor_PK=floor_PM,
        )  # fmt: skip

    def _scaled(self, coords_xy: Tensor, encoded: EncodedImage) -> Tensor:
        scale = (encoded.input_width / encoded.width, encoded.input_height / encoded.height)
        return coords_xy.to(self.device, torch.float32) * torch.tensor(scale, device=self.device)


def load_segmenter(name: str, checkpoint: Path | None, device: str) -> Segmenter:
    """Load a segmenter by name.

    Args:
        name: ``sam-nano`` (shipped), or a name of ``weaksam weights list``.
        checkpoint: Its weights: a file of sam-nano and segment-anything models, for the others a folder or a hub
            id. None takes the shipped ones of sam-nano, else those that ``weaksam weights get`` fetched.
        device: Torch device string.

    Raises:
        ConfigError: unknown name.
        EnvironmentFault: the weights are not there, or an extra is not installed.
        SchemaError: the weights are damaged or of another architecture.
    """
    from stages.core.vision.hf_loading import family_of, load_hf_segmenter  # which knows this module

    kind = segmenter_kind(name)
    family = family_of(kind)
    if family is not None:
        return load_hf_segmenter(name, family, checkpoint, device)
    if checkpoint is None and kind != NANO:
        checkpoint = cached_weights(name)
    return SamSegmenter(name, load_sam(kind, checkpoint).to(device))
