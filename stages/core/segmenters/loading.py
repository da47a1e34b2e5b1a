"""Segmenters by name: a model of segment-anything or of the transformers library, with its weights, on a device."""

from __future__ import annotations

from pathlib import Path

from stages.core.segmenters.hf_checkpoints import family_of, load_hf_segmenter
from stages.core.segmenters.protocol import Segmenter
from stages.core.segmenters.sam_checkpoints import load_sam
from stages.core.segmenters.sam_segmenter import SamSegmenter
from stages.core.weights.cache import cached_weights
from stages.core.weights.table import segmenter_kind


def load_segmenter(name: str, checkpoint: Path | None, device: str) -> Segmenter:
    """Load a segmenter by name.

    Args:
        name: A name of ``weaksam weights list``, of which ``sam-nano`` and ``sam-nano-photo`` are shipped.
        checkpoint: Its weights: a file of sam-nano and segment-anything models, for the others a folder or a hub
            id. None takes the shipped ones, or those that ``weaksam weights get`` fetched.
        device: Torch device string.

    Raises:
        ConfigError: unknown name.
        EnvironmentFault: the weights are not there, or an extra is not installed.
        SchemaError: the weights are damaged or of another architecture.
    """
    kind = segmenter_kind(name)
    family = family_of(kind)
    if family is not None:
        return load_hf_segmenter(name, family, checkpoint, device)
    if checkpoint is None:
        checkpoint = cached_weights(name)
    return SamSegmenter(name, load_sam(kind, checkpoint).to(device))
