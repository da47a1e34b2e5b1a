"""Whether a file or folder holds weights of a named segmenter, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stages.core.errors import SchemaError
from stages.core.segmenters.checkpoint_identification import recognise
from stages.core.segmenters.hf_checkpoints import family_of, load_hf_segmenter
from stages.core.segmenters.sam_checkpoints import (
    NANO,
    VIT_BUILDERS,
    load_nano,
    read_published,
    with_counters,
)
from stages.core.weights.checkpoints import state_mismatch


def check_architecture(kind: str, checkpoint: Path) -> int:
    """Compare every tensor's name and shape with those of an architecture.

    Args:
        kind: Segmenter name of the architecture.
        checkpoint: File, or folder of the transformers library.

    Returns:
        Number of parameters.

    Raises:
        EnvironmentFault: nothing there, or an extra is not installed.
        SchemaError: damaged, a web page, or of another architecture, which the message names.
    """
    family = family_of(kind)
    model: Any
    if family is not None:
        # The library alone knows which tensors of its files are shared or left aside: it has to load them.
        model = load_hf_segmenter(kind, family, checkpoint, "cpu").model
    elif kind == NANO:
        model = load_nano(checkpoint)
    else:
        model = _published(kind, checkpoint)
    return sum(parameter.numel() for parameter in model.parameters())


def _published(kind: str, path: Path) -> Any:
    import segment_anything

    state = read_published(path)
    found = recognise(state)
    if found is not None and found != kind:
        raise SchemaError(
            f"weights of {found}, not of {kind}", where=path, hint=f"give a checkpoint of {kind}"
        )
    with torch.device("meta"):  # names and shapes without memory or time
        sam = segment_anything.sam_model_registry[VIT_BUILDERS[kind]]()
    problem = state_mismatch(sam, with_counters(sam, state))
    if problem is not None:
        raise SchemaError(f"not weights of {kind}: {problem}", where=path, hint=f"give weights of {kind}")
    return sam
