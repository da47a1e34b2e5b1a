"""What `prompt` reads and writes."""

from __future__ import annotations

from stages.core.spec import BOTH, InputSpec, OutputSpec, StageSpec

PROMPTS_FILE = "prompts.h5"

SPEC = StageSpec(
    name="prompt",
    summary="Turn the maps' peaks into point prompts.",
    inputs=(InputSpec("cams", "cam", "cams.h5"),),
    outputs=(OutputSpec(PROMPTS_FILE, "prompts"),),
    uses_device=False,
    shardable=BOTH,
)
