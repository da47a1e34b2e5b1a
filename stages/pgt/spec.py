"""What `pgt` reads and writes."""

from __future__ import annotations

from stages.core.spec import InputSpec, OutputSpec, StageSpec

PSEUDO_GROUND_TRUTH = "pgt.json"

SPEC = StageSpec(
    name="pgt",
    summary="Make pseudo ground truth out of the detections of a train split.",
    inputs=(
        InputSpec("detections", "wsod", "detections.json", "own", ("train",)),
        InputSpec(
            "trusted",
            "",
            "",
            roles=(),
            help="Boxes of people, a COCO file: they replace an image's pseudo boxes.",
        ),
    ),
    outputs=(OutputSpec(PSEUDO_GROUND_TRUTH, "pgt", ("train",), title="Pseudo ground truth"),),
    uses_device=False,
)
