"""Settings of pseudo ground truth; published values are in docs/method.md, section 6."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.core.config import StageConfig

if TYPE_CHECKING:
    from stages.pgt.adaptive import Rule


class PgtConfig(StageConfig):
    """Settings of `weaksam pgt`."""

    mode: Literal["paper", "improved", "topk", "pgf"] = Field(
        "improved",
        description="Rule: Algorithm 2, ours, the best k per class, or the fixed-threshold filter",
    )
    tau_s: float = Field(
        0.3,
        description="Score threshold in [0, 1]: min-max normalised (paper), relative to the best (improved), raw (pgf)",
        ge=0,
        le=1,
    )
    tau_o: float = Field(
        0.85,
        description="Share of a box inside another of its class from which it counts as a part",
        gt=0,
        le=1,
    )
    nms_iou: float = Field(
        0.3, description="improved: class-wise NMS before containment; 1 = none", gt=0, le=1
    )
    policy: Literal["drop_inner", "drop_lower"] = Field(
        "drop_inner", description="improved: of a box and its part, drop the part or the lower score"
    )
    protect_top1: bool = Field(
        True, description="improved: containment never removes the best box of a class"
    )
    top: int = Field(1, description="topk: boxes per class and image", ge=1)
    exempt: tuple[str, ...] = Field(
        (), description="pgf: class names without containment removal (instances that often overlap)"
    )

    def rule(self, classes: tuple[str, ...]) -> Rule:
        """The rule over class indices; names in `exempt` must be among `classes`."""
        from stages.pgt.adaptive import Rule  # torch, which --help does without

        return Rule(
            mode=self.mode,
            tau_s=self.tau_s,
            tau_o=self.tau_o,
            nms_iou=self.nms_iou,
            policy=self.policy,
            protect_top1=self.protect_top1,
            top=self.top,
            exempt_classes=frozenset(classes.index(name) for name in self.exempt),
        )
