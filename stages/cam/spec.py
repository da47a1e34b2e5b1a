"""What `cam` reads and writes."""

from __future__ import annotations

from stages.core.spec import InputSpec, OutputSpec, StageSpec

CHECKPOINT = "classifier.safetensors"
CAMS_FILE = "cams.h5"

SPEC = StageSpec(
    name="cam",
    summary="Train the classifier on tags; write coarse, fine and cross-attention maps.",
    inputs=(InputSpec("checkpoint", "cam", CHECKPOINT, "train", ("test",)),),
    outputs=(
        OutputSpec(CHECKPOINT, "weights", ("train",)),
        OutputSpec(CAMS_FILE, "cams"),
    ),
    uses_device=True,
    shardable=("test",),
)
