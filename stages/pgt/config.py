"""Settings of pseudo ground truth; published values are in docs/method.md, section 6."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from stages.core.config import OnlyWith, StageConfig
from stages.core.settings import NmsThresh

if TYPE_CHECKING:
    from stages.pgt.adaptive import Rule

IMPROVED = OnlyWith("mode", ("improved",))


class PgtConfig(StageConfig):
    """Settings of `weaksam pgt`."""

    main_settings: ClassVar[tuple[str, ...]] = (
        "mode",
        "tau_s",
        "tau_o",
        "nms_thresh",
        "containment_policy",
        "top_k",
        "keep_fraction",
    )

    mode: Literal["paper", "improved", "topk", "pgf"] = Field(
        "improved",
        description="Rule: Algorithm 2, ours, the best k per class, or the fixed-threshold filter",
    )
    tau_s: Annotated[float, OnlyWith("mode", ("paper", "improved", "pgf"))] = Field(
        0.3,
        description="Score threshold: min-max normalized (paper), relative to the best (improved), raw (pgf)",
        ge=0,
        le=1,
    )
    tau_o: Annotated[float, OnlyWith("mode", ("paper", "improved", "pgf"))] = Field(
        0.85,
        description="Fraction of a box's area inside another of its class from which it counts as a part",
        gt=0,
        le=1,
    )
    nms_thresh: Annotated[NmsThresh, IMPROVED] = 0.3
    containment_policy: Annotated[Literal["drop_inner", "drop_lower"], IMPROVED] = Field(
        "drop_inner", description="Of a box and its part, drop the part or the lower score"
    )
    keep_top1: Annotated[bool, IMPROVED] = Field(
        True, description="Containment never removes the highest-scoring box of a class"
    )
    top_k: Annotated[int, OnlyWith("mode", ("topk",))] = Field(
        1, description="Boxes per class and image", ge=1, le=10_000
    )
    exempt_classes: Annotated[tuple[str, ...], OnlyWith("mode", ("pgf",))] = Field(
        (), description="Class names without containment removal (instances that often overlap)"
    )

    keep_fraction: float = Field(
        1.0,
        description="Fraction of the images of each class that keep their boxes of it, the best-scoring ones; an image"
        " left without any is not trained on; 1 = all (published)",
        gt=0,
        le=1,
    )

    def rule(self, classes: tuple[str, ...]) -> Rule:
        """The rule over class indices; names in `exempt_classes` must be among `classes`."""
        from stages.pgt.adaptive import Rule  # torch, which --help does without

        return Rule(
            mode=self.mode,
            tau_s=self.tau_s,
            tau_o=self.tau_o,
            nms_thresh=self.nms_thresh,
            containment_policy=self.containment_policy,
            keep_top1=self.keep_top1,
            top_k=self.top_k,
            exempt_classes=frozenset(classes.index(name) for name in self.exempt_classes),
        )
