"""What `wsod` reads and writes."""

from __future__ import annotations

from stages.core.spec import InputSpec, OutputSpec, StageSpec

CHECKPOINT = "detector.safetensors"
DETECTIONS = "detections.json"

SPEC = StageSpec(
    name="wsod",
    summary="Learn which proposal is which class from tags alone; write detections.",
    inputs=(
        InputSpec("proposals", "propose", "proposals.h5"),
        InputSpec("checkpoint", "wsod", CHECKPOINT, "train", ("test",)),
    ),
    outputs=(
        OutputSpec(CHECKPOINT, "weights", ("train",)),
        OutputSpec(DETECTIONS, "detections", title="WSOD detections"),
    ),
    uses_device=True,
    shardable=("test",),
)
