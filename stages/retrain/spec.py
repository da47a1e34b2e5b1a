"""What `retrain` reads and writes."""

from __future__ import annotations

from stages.core.spec import InputSpec, OutputSpec, StageSpec

CHECKPOINT = "detector.safetensors"
DETECTIONS = "detections.json"

SPEC = StageSpec(
    name="retrain",
    summary="Train an ordinary detector on the pseudo ground truth with RoI drop.",
    inputs=(
        InputSpec("pgt", "pgt", "pgt.json", "own", ("train",)),
        InputSpec("checkpoint", "retrain", CHECKPOINT, "train", ("test",)),
    ),
    outputs=(
        OutputSpec(CHECKPOINT, "detector", ("train",)),
        OutputSpec(DETECTIONS, "detections", title="Retrained detector"),
    ),
    uses_device=True,
    shardable=("test",),
)
