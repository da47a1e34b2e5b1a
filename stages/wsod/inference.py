"""A trained detector applied to the proposals of a split, image by image, resumable and sharded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stages.core.artifacts.detection_rows import DETECTION_ROWS, from_table, to_rows
from stages.core.artifacts.evidence import ProposalEvidence
from stages.core.artifacts.table import ImageRows
from stages.core.datasets.images import image_size, load_image
from stages.core.datasets.split import WeakSplit
from stages.core.detectors.tta import View, run_views, views
from stages.core.errors import EnvironmentFault, InputError
from stages.core.runtime.device import Precision, autocast
from stages.core.runtime.parts import ImageFunction, map_images
from stages.core.spec import StageContext
from stages.core.structures.detections import Detections
from stages.wsod.batches import render, unrender_boxes
from stages.wsod.config import WsodConfig
from stages.wsod.detection import ScoredProposals, detect, score_proposals, weigh, weigh_by_evidence
from stages.wsod.evidence.class_scores import class_scores
from stages.wsod.fitting import load_detector
from stages.wsod.model.detector import WsodDetector
from stages.wsod.proposals import Proposals, ProposalSource
from stages.wsod.tta import average

OF_THE_RUN = (
    "test_short_side", "max_size", "quality_power", "evidence_score_power", "nms_thresh", "score_thresh",
    "detections_per_image", "min_side_px", "dedup_grid_px", "max_proposals",
)  # fmt: skip
"""Settings of detection: this run's count, whatever the checkpoint was trained with."""
OF_THE_CHECKPOINT = (
    "method", "backbone", "final_relu", "out_strides", "fused_channels", "pooler_type", "pooler_resolution", "fc_dim",
    "background_class", "mist.regression", "num_refinements",
)  # fmt: skip
"""Settings of the detector itself: it is rebuilt from the checkpoint's."""


def other_settings(config: WsodConfig, trained: WsodConfig) -> str:
    """Which settings that matter at detection differ from the checkpoint's, in words; empty if none does.

    Settings that only one of the two methods or backbones has are left out: the method or backbone itself is named.
    """
    ours, theirs = dict(config.named_values()), dict(trained.named_values())

    def named(names: Sequence[str]) -> str:
        both = [name for name in names if name in ours and name in theirs]
        return ", ".join(
            f"{name} {ours[name]!r} (checkpoint: {theirs[name]!r})"
            for name in both
            if ours[name] != theirs[name]
        )

    used = named(
        (*OF_THE_RUN, *(("tta_short_sides", "train_short_sides", "tta_hflip") if config.tta else ()))
    )
    unused = named(OF_THE_CHECKPOINT)
    parts = [f"in use: {used}" if used else "", f"not in use: {unused}" if unused else ""]
    return "; ".join(part for part in parts if part)


@torch.inference_mode()
def detect_image(
    model: WsodDetector,
    pixels_CHW: Tensor,
    proposals: Proposals,
    config: WsodConfig,
    device: str,
    precision: Precision,
    evidence: ProposalEvidence | None = None,
) -> Detections:
    """Detections of one uint8 image from its proposals (original pixels, at least one).

    evidence: what the maps say of the proposals, for `evidence_score_power`.

    Raises:
        EnvironmentFault: see `score_views`.
    """
    boxes_xyxy = torch.from_numpy(proposals.boxes_xyxy)
    scored = score_views(model, pixels_CHW, boxes_xyxy, config, device, precision)
    height, width = pixels_CHW.shape[-2:]
    quality = torch.from_numpy(proposals.quality).to(device)
    weighed = weigh(average(scored), quality, config.quality_power)
    if evidence is not None and config.evidence_score_power > 0:
        evidence_NC = torch.from_numpy(class_scores(evidence, range(model.num_classes))).to(device)
        weighed = weigh_by_evidence(weighed, evidence_NC, config.evidence_score_power)
    return detect(
        weighed,
        height,
        width,
        config.nms_thresh,
        config.score_thresh,
        config.detections_per_image,
    )


def score_views(
    model: WsodDetector,
    pixels_CHW: Tensor,
    boxes_xyxy: Tensor,
    config: WsodConfig,
    device: str,
    precision: Precision,
) -> list[ScoredProposals]:
    """The proposals scored in every view that the settings ask for.

    A view of test-time augmentation that memory cannot hold is left out, with a warning, and so are larger ones.

    Raises:
        EnvironmentFault: memory cannot hold the plain view either.
    """
    scored = run_views(
        views(
            config.test_short_side,
            config.tta_short_sides or config.train_short_sides,
            config.tta,
            config.tta_hflip,
        ),
        device,
        lambda view: _score_view(model, pixels_CHW, boxes_xyxy, view, config.max_size, device, precision),
    )
    if not scored:
        raise EnvironmentFault(
            f"memory cannot hold an image of {config.test_short_side} pixels with {len(boxes_xyxy)} proposals",
            where="wsod.test_short_side",
            hint="lower wsod.test_short_side or wsod.max_proposals, or use another --device or --precision bf16",
        )
    return scored


def _score_view(
    model: WsodDetector,
    pixels_CHW: Tensor,
    boxes_xyxy: Tensor,
    view: View,
    max_size: int,
    device: str,
    precision: Precision,
) -> ScoredProposals:
    image, boxes = render(pixels_CHW, boxes_xyxy, view, max_size)
    boxes = boxes.to(device)
    with autocast(device, precision):
        outputs = model([image.to(device)], [boxes])
    (scored,) = score_proposals(outputs, [boxes], model.num_classes)
    size_hw = (pixels_CHW.shape[-2], pixels_CHW.shape[-1])
    return replace(scored, boxes_NC4=unrender_boxes(scored.boxes_NC4, view, image, size_hw))


@dataclass(frozen=True)
class DetectFactory:
    """Builds the per-image function inside a worker process; everything it holds can be pickled."""

    checkpoint: Path
    proposals: Path
    split: WeakSplit
    config: WsodConfig
    device: str
    precision: Precision

    def __call__(self) -> ImageFunction:
        """Load model and proposals once and return image id -> rows."""
        model, _ = load_detector(self.checkpoint, self.split.classes)
        model.to(self.device)
        source = ProposalSource(self.proposals, self.config)

        def rows(image_id: str) -> ImageRows:
            proposals = source.proposals(image_id)
            if not len(proposals):
                if not (self.split.has_tags and not self.split.tags(image_id)):
                    raise InputError("no usable proposal")
                # Nothing stands out in a negative, and nothing is wrong with it.
                return to_rows(Detections.empty(), *image_size(self.split.image_path(image_id)))
            pixels = torch.from_numpy(load_image(self.split.image_path(image_id)).copy()).permute(2, 0, 1)
            evidence = source.evidence(image_id) if self.config.evidence_score_power > 0 else None
            found = detect_image(model, pixels, proposals, self.config, self.device, self.precision, evidence)
            return to_rows(found, pixels.shape[1], pixels.shape[2])

        return rows


def detect_split(context: StageContext, checkpoint: Path, config: WsodConfig) -> dict[str, Detections] | None:
    """Detections of every image that can be read and has proposals; None while other shards have parts to do."""
    factory = DetectFactory(
        checkpoint, context.input("proposals"), context.split, config, context.device, context.precision
    )
    table = map_images(context, DETECTION_ROWS, factory, "detect")
    return None if table is None else from_table(table, with_masks=False)
