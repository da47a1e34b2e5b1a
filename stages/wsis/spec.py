"""What `wsis` reads and writes."""

from __future__ import annotations

from stages.core.spec import InputSpec, OutputSpec, StageSpec

CHECKPOINT = "segmenter.safetensors"
MASKS = "pgt_masks.json"
SEGMENTATIONS = "segmentations.json"

SPEC = StageSpec(
    name="wsis",
    summary="Turn pseudo boxes into masks with SAM and train an instance segmenter.",
    inputs=(
        InputSpec("pgt", "pgt", "pgt.json", "own", ("train",)),
        InputSpec("checkpoint", "wsis", CHECKPOINT, "train", ("test",)),
    ),
    outputs=(
        OutputSpec(MASKS, "pgt", ("train",), title="Pseudo masks"),
        OutputSpec(CHECKPOINT, "detector", ("train",)),
        OutputSpec(SEGMENTATIONS, "segmentations", title="Instance segmenter"),
    ),
    uses_device=True,
    shardable=("test",),
)
