"""What `predict` reads and writes."""

from __future__ import annotations

from stages.core.spec import InputSpec, OutputSpec, StageSpec

PREDICTIONS = "predictions.json"

SPEC = StageSpec(
    name="predict",
    summary="Apply the trained detector to new images: a COCO JSON file and a picture of each image.",
    inputs=(InputSpec("detector", "retrain", "detector.safetensors", "train", ("test",)),),
    outputs=(OutputSpec(PREDICTIONS, "predictions"),),
    uses_device=True,
)
