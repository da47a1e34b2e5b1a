"""Which model a checkpoint was saved from, told by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor

# The width of the ViT names the model that a checkpoint was saved from.
VIT_OF_WIDTH: Final[Mapping[int, str]] = {768: "sam-vit-b", 1024: "sam-vit-l", 1280: "sam-vit-h"}

# Tensors that only one kind of model has; the first that occurs decides.
_TELLING: Final = (
    ("image_encoder.laterals.", "sam-nano"),
    ("mask_decoder.hf_token.weight", "HQ-SAM in its authors' format"),
    ("memory_attention.", "SAM 2 or EdgeTAM in its authors' format"),
    ("image_encoder.trunk.blocks.", "SAM 2 in its authors' format"),
    ("image_encoder.patch_embed.seq.", "MobileSAM"),
    ("vision_encoder.", "a segmenter of the transformers library"),
    ("roi_heads.", "a two-stage detector"),
    ("fc.weight", "an image classifier"),
    ("head.weight", "an image classifier"),
)


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The name of a segment-anything segmenter, other models in words, None if nothing is known."""
    names = tuple(state)
    for telling, model in _TELLING:
        if any(name.startswith(telling) for name in names):
            return model
    embedding = state.get("image_encoder.pos_embed")
    if embedding is None or embedding.ndim != 4:
        return None
    return VIT_OF_WIDTH.get(int(embedding.shape[-1]))
