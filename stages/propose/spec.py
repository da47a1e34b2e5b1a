"""What `propose` reads and writes."""

from __future__ import annotations

from stages.core.spec import BOTH, InputSpec, OutputSpec, StageSpec

PROPOSALS_FILE = "proposals.h5"

SPEC = StageSpec(
    name="propose",
    summary="Prompt SAM with a grid and the points; write class-agnostic boxes.",
    inputs=(
        InputSpec("prompts", "prompt", "prompts.h5"),
        InputSpec("cams", "cam", "cams.h5", optional=True),
    ),
    outputs=(OutputSpec(PROPOSALS_FILE, "proposals"),),
    uses_device=True,
    shardable=BOTH,
)
