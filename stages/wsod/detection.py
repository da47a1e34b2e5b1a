"""From refinement scores to detections: average over branches and views, class-wise NMS, cap.

docs/method.md, section 5.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from stages.core.ops.boxes import clip_boxes, decode_deltas
from stages.core.ops.mil import bag_index, two_stream_scores
from stages.core.ops.nms import class_wise_nms
from stages.core.structures.columns import Column, Columns
from stages.core.structures.detections import Detections
from stages.core.structures.instances import Instances
from stages.wsod.criterion import DELTA_WEIGHTS
from stages.wsod.evidence.class_scores import FLOOR
from stages.wsod.model.detector import ProposalOutputs


@dataclass(frozen=True, eq=False)
class ScoredProposals(Columns):
    """Class scores and class-wise boxes of the proposals of one image.

    Attributes:
        scores_NC: in [0, 1], without background.
        boxes_NC4: half-open pixels, one box per class; the same box C times without regression.
    """

    scores_NC: Annotated[Tensor, Column("float", None)]
    boxes_NC4: Annotated[Tensor, Column("float", None, 4)]


def score_proposals(
    outputs: ProposalOutputs, boxes_xyxy: Sequence[Tensor], num_classes: int
) -> list[ScoredProposals]:
    """Mean softmax over refinement branches (two-stream scores where there are none), and decoded boxes, per image."""
    counts = [len(boxes) for boxes in boxes_xyxy]
    if outputs.refine_logits:
        scores_NC = torch.stack([torch.softmax(logits, dim=1) for logits in outputs.refine_logits]).mean(
            dim=0
        )
    else:
        bag_N = bag_index(counts, outputs.cls_logits_NC.device)
        scores_NC = two_stream_scores(outputs.cls_logits_NC, outputs.det_logits_NC, bag_N, len(counts))
    # A background column, where there is one, comes first: the last C columns are the classes.
    boxes_N4 = torch.cat(list(boxes_xyxy))
    if outputs.deltas:
        deltas_NC4 = torch.stack(outputs.deltas).mean(dim=0)[:, -num_classes:]
        boxes_NC4 = decode_deltas(boxes_N4, deltas_NC4.flatten(1), DELTA_WEIGHTS).reshape(deltas_NC4.shape)
    else:
        boxes_NC4 = boxes_N4[:, None].expand(-1, num_classes, -1)
    scores = torch.split(scores_NC[:, -num_classes:], counts)
    return [
        ScoredProposals(own_scores, own_boxes)
        for own_scores, own_boxes in zip(scores, torch.split(boxes_NC4, counts), strict=True)
    ]


def weigh(scored: ScoredProposals, quality_N: Tensor, power: float) -> ScoredProposals:
    """Scores times quality ** power, boxes as they are; power 0 changes nothing.

    quality_N: predicted IoU x stability of each proposal's mask, in [0, 1].

    A classifier taught by image tags prefers a telling part to the whole; the segmenter knows which of its masks
    end at real borders, but not which matter. The product wants both.
    """
    return replace(scored, scores_NC=scored.scores_NC * quality_N[:, None] ** power)


def weigh_by_evidence(scored: ScoredProposals, evidence_NC: Tensor, power: float) -> ScoredProposals:
    """Scores times map evidence ** power, boxes as they are; power 0 changes nothing.

    evidence_NC: evidence of the proposals for all classes, in [0, 1]. A class without maps, one that the classifier
    does not see in the image, counts as the least evidence.
    """
    return ScoredProposals(scored.scores_NC * evidence_NC.clamp(min=FLOOR) ** power, scored.boxes_NC4)


def detect(
    scored: ScoredProposals,
    height: int,
    width: int,
    nms_thresh: float = 0.3,
    score_thresh: float = 0.0,
    detections_per_image: int = 100,
) -> Detections:
    """Clip, threshold (strict), class-wise NMS, and keep the best `detections_per_image` over all classes."""
    boxes_NC4 = clip_boxes(scored.boxes_NC4, height, width)
    sides = boxes_NC4[..., 2:] - boxes_NC4[..., :2]
    rows, classes = torch.nonzero((scored.scores_NC > score_thresh) & (sides > 0).all(dim=-1), as_tuple=True)
    found = Instances(boxes_NC4[rows, classes], classes, scored.scores_NC[rows, classes])
    keep = class_wise_nms(found.boxes_xyxy, found.scores, found.classes, nms_thresh)
    return found[keep[:detections_per_image]].detections()
