"""Segmenters of the transformers library behind our protocol: SAM 2 and 2.1, HQ-SAM, EdgeTAM, and SAM itself.

Two geometries occur. SAM and HQ-SAM scale the longest side to the square input and pad the rest, as
segment-anything does; SAM 2 and EdgeTAM squash the image to the square, so that it fills the logits whatever
its shape, and each axis has its own scale. Both are said by the fields of :class:`EncodedImage`; prompts and
boxes need nothing else. Images are prepared by the image processor saved beside the weights.

HQ-SAM's three masks leave the library sorted by predicted IoU. They are put back into the order of the mask
tokens (sub-part, part, whole), which is what ``mask_index`` means everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stages.core.errors import ImageError
from stages.core.ops.precision import run_in_full_precision
from stages.core.segmenters.protocol import Decoded, EncodedImage, SelectedMasks


class HfSegmenter:
    """A model of the transformers library as a ``Segmenter``; the base is SAM 2 and EdgeTAM.

    Args:
        name: What the model is called in settings and messages.
        model: The model, already on its device; put into evaluation mode.
        processor: Its image processor.
    """

    mask_threshold = 0.0
    pads = False
    """Whether the input is a scaled image and padding, or a squashed image."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name = name
        self.model: Any = model.eval()
        self.processor: Any = processor
        # Half precision would move the prompts by several pixels.
        run_in_full_precision(model.prompt_encoder)
        run_in_full_precision(model.shared_image_embedding)
        self.input_size = int(model.config.prompt_encoder_config.image_size)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return torch.device(self.model.device)

    @torch.no_grad()
    def encode(self, image_HW3: NDArray[np.uint8]) -> EncodedImage:
        """Encode an RGB image, with exactly one call of the image encoder.

        Args:
            image_HW3: uint8, any size.

        Raises:
            ImageError: so thin that a side vanishes in the scaled input.
        """
        return self.encode_batch([image_HW3])[0]

    @torch.no_grad()
    def encode_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[EncodedImage]:
        """Encode several RGB images, with one call of the image encoder.

        Raises:
            ImageError: one is so thin that a side vanishes in the scaled input.
        """
        pixels_B3HW = torch.cat([self._prepared(image) for image in images])
        embedding, further = self._embed(pixels_B3HW)
        encoded = []
        for i, image in enumerate(images):
            height, width = image.shape[:2]
            encoded.append(
                EncodedImage(
                    embedding[i : i + 1],
                    height,
                    width,
                    *self._scaled_size(height, width),
                    self.input_size,
                    via_input=self.pads,
                    further=tuple(level[i : i + 1] for level in further),
                )
            )
        return encoded

    def _prepared(self, image_HW3: NDArray[np.uint8]) -> Tensor:
        height, width = image_HW3.shape[:2]
        input_height, input_width = self._scaled_size(height, width)
        if min(input_height, input_width) < 1:
            raise ImageError(
                f"an image of {width} x {height} px is too thin for the {self.input_size} px input of {self.name}"
            )
        pixels = (
            image_HW3 if image_HW3.flags.writeable else image_HW3.copy()
        )  # torch warns of shared constants
        prepared = self.processor(images=pixels, input_data_format="channels_last", return_tensors="pt")
        pixels_13HW: Tensor = prepared["pixel_values"].to(self.device)
        return pixels_13HW

    @torch.no_grad()
    def decode(
        self, encoded: EncodedImage, points_PK2: Tensor | None, labels_PK: Tensor | None,
        boxes_P4: Tensor | None, *, multimask: bool,
    ) -> Decoded:  # fmt: skip
        """Decode P prompts on one image; arguments as for ``SamSegmenter.decode``."""
        assert (points_PK2 is None) == (labels_PK is None), "points and labels come together"
        assert points_PK2 is not None or boxes_P4 is not None, "a prompt needs points or a box"
        prompts: dict[str, Tensor] = {}
        if points_PK2 is not None and labels_PK is not None:
            prompts["input_points"] = self._scaled(points_PK2, encoded)[None]
            prompts["input_labels"] = labels_PK.to(self.device, torch.int64)[None]
        if boxes_P4 is not None:
            corners = self._scaled(boxes_P4.reshape(-1, 2, 2), encoded)
            prompts["input_boxes"] = corners.reshape(1, -1, 4)
        logits_PMhw, iou_PM = self._answer(encoded, prompts, multimask)
        return Decoded(logits_PMhw, iou_PM)

    @torch.no_grad()
    def decode_above(
        self, encoded: EncodedImage, points_PK2: Tensor | None, labels_PK: Tensor | None,
        boxes_P4: Tensor | None, *, multimask: bool, floor_PM: Tensor,
    ) -> SelectedMasks:  # fmt: skip
        """Decode P prompts and keep the masks whose predicted IoU exceeds their floor, ``(P, M)``.

        The library draws all masks before it tells their predicted IoU, so nothing is saved but the memory
        of what is thrown away.
        """
        decoded = self.decode(encoded, points_PK2, labels_PK, boxes_P4, multimask=multimask)
        passed = decoded.predicted_iou.float() > floor_PM.to(decoded.predicted_iou.device)
        prompt, mask_index = passed.nonzero(as_tuple=True)
        return SelectedMasks(prompt, mask_index, decoded.low_res_logits[passed], decoded.predicted_iou)

    @torch.no_grad()
    def upscale(self, low_res_logits: Tensor, encoded: EncodedImage) -> Tensor:
        """Interpolate ``(..., h, w)`` logits to the original image, ``(..., H, W)``, as the library does."""
        leading, cells = low_res_logits.shape[:-2], low_res_logits.shape[-2:]
        size = (encoded.height, encoded.width)
        if low_res_logits.numel() == 0:
            return low_res_logits.new_zeros((*leading, *size))
        logits_N1hw = low_res_logits.reshape(-1, 1, *cells)
        if encoded.frame_size:
            square = (encoded.frame_size, encoded.frame_size)
            padded = F.interpolate(logits_N1hw, square, mode="bilinear", align_corners=False)
            logits_N1hw = padded[..., : encoded.input_height, : encoded.input_width]
        full = F.interpolate(logits_N1hw, size, mode="bilinear", align_corners=False)
        return full.reshape(*leading, *size)

    def _scaled(self, coords_xy: Tensor, encoded: EncodedImage) -> Tensor:
        scale = (encoded.input_width / encoded.width, encoded.input_height / encoded.height)
        return coords_xy.to(self.device, torch.float32) * torch.tensor(scale, device=self.device)

    def _scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the image in the model's input, without padding."""
        if not self.pads:
            return self.input_size, self.input_size
        scale = self.input_size / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    # What differs between the models.

    def _embed(self, pixels_B3HW: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The embedding that prompts attend to, and what else the decoder asks for."""
        levels = self.model.get_image_embeddings(pixels_B3HW)
        return levels[-1], tuple(levels[:-1])

    def _answer(
        self, encoded: EncodedImage, prompts: dict[str, Tensor], multimask: bool
    ) -> tuple[Tensor, Tensor]:
        levels = [*encoded.further, encoded.embedding_1CHW]
        answer = self.model(image_embeddings=levels, multimask_output=multimask, **prompts)
        return answer.pred_masks[0], answer.iou_scores[0]


class HfSamSegmenter(HfSegmenter):
    """``SamModel``: one embedding, and padding below or to the right."""

    pads = True

    def _embed(self, pixels_B3HW: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.model.get_image_embeddings(pixels_B3HW), ()

    def _answer(
        self, encoded: EncodedImage, prompts: dict[str, Tensor], multimask: bool
    ) -> tuple[Tensor, Tensor]:
        answer = self.model(image_embeddings=encoded.embedding_1CHW, multimask_output=multimask, **prompts)
        return answer.pred_masks[0], answer.iou_scores[0]


class HfHqSegmenter(HfSamSegmenter):
    """``SamHQModel``: SAM's masks plus a high-quality residual that the decoder draws from an early layer."""

    def _embed(self, pixels_B3HW: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        embedding, intermediate = self.model.get_image_embeddings(pixels_B3HW)
        # The decoder looks at the first of the global layers alone; the others need not be kept.
        return embedding, (intermediate[0],)

    def _answer(
        self, encoded: EncodedImage, prompts: dict[str, Tensor], multimask: bool
    ) -> tuple[Tensor, Tensor]:
        heard: list[Tensor] = []
        head = self.model.mask_decoder.iou_prediction_head
        hook = head.register_forward_hook(lambda module, inputs, output: heard.append(output))
        try:
            answer = self.model(
                image_embeddings=encoded.embedding_1CHW, intermediate_embeddings=list(encoded.further),
                multimask_output=multimask, **prompts,
            )  # fmt: skip
        finally:
            hook.remove()
        logits_PMhw, iou_PM = answer.pred_masks[0], answer.iou_scores[0]
        if not multimask:
            return logits_PMhw, iou_PM
        by_token = heard[0][0, :, 1:]
        back = torch.sort(by_token, dim=1, descending=True).indices.argsort(dim=1)
        cells = back[..., None, None].expand_as(logits_PMhw)
        return logits_PMhw.gather(1, cells), by_token
