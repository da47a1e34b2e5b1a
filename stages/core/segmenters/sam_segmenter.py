"""Models of the library segment-anything behind our protocol, from sam-nano to ViT-H (Kirillov et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from stages.core.errors import ImageError
from stages.core.ops.precision import full_precision
from stages.core.segmenters.folded_decoder import FoldedMaskDecoder
from stages.core.segmenters.protocol import Decoded, EncodedImage, SelectedMasks
from stages.core.segmenters.sam_attention import fuse_attention


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
        self._transform = ResizeLongestSide(int(self.sam.image_encoder.img_size))
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
        return self.encode_batch([image_HW3])[0]

    @torch.no_grad()
    def encode_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[EncodedImage]:
        """Encode several RGB images, with exactly one call of the image encoder.

        Args:
            images: As for :meth:`encode`.

        Raises:
            ImageError: one is so thin that a side vanishes in the scaled input.
        """
        scaled = [self._scale_image(image) for image in images]
        embeddings = self.sam.image_encoder(torch.stack([self.sam.preprocess(image) for image in scaled]))
        size = int(self.sam.image_encoder.img_size)
        encoded = []
        for i, image in enumerate(images):
            height, width = image.shape[:2]
            input_height, input_width = scaled[i].shape[1:]
            encoded.append(
                EncodedImage(embeddings[i : i + 1], height, width, input_height, input_width, size)
            )
        return encoded

    def _scale_image(self, image_HW3: NDArray[np.uint8]) -> Tensor:
        """The image as `SamPredictor` scales it, ``(3, h, w)`` on the model's device."""
        height, width = image_HW3.shape[:2]
        size = self._transform.target_length
        if min(self._transform.get_preprocess_shape(height, width, size)) < 1:
            raise ImageError(
                f"an image of {width} x {height} px is too thin for the {size} px input of {self.name}"
            )
        pixels = torch.as_tensor(self._transform.apply_image(image_HW3), device=self.device)
        return pixels.permute(2, 0, 1).contiguous()

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
        with full_precision(encoded.embedding_1CHW):  # bf16 would move prompts by up to 4 of 1024 pixels
            sparse, dense = self.sam.prompt_encoder(points=points, boxes=boxes, masks=None)
            dense_pe = self.sam.prompt_encoder.get_dense_pe()
        return self._decoder.decode(
            encoded.embedding_1CHW, dense_pe, sparse, dense[:1],
            multimask=multimask, floor_PK=floor_PM,
        )  # fmt: skip

    def _scaled(self, coords_xy: Tensor, encoded: EncodedImage) -> Tensor:
        scale = (encoded.input_width / encoded.width, encoded.input_height / encoded.height)
        return coords_xy.to(self.device, torch.float32) * torch.tensor(scale, device=self.device)
