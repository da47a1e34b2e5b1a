"""Map evidence in `wsod`: one number per class, the seeds it gives, what it does to losses and detections."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.core.artifacts.evidence import ProposalEvidence
from stages.wsod.config import WsodConfig
from stages.wsod.criterion import Bags, map_seeds, wsod_losses
from stages.wsod.detection import ScoredProposals, weigh_by_evidence
from stages.wsod.evidence.class_scores import FLOOR, class_scores, factors
from stages.wsod.model.detector import ProposalOutputs

NAN = float("nan")


def evidence(*boxes: list[tuple[float, float, float]], classes: tuple[int, ...] = (4,)) -> ProposalEvidence:
    """Per box the (mass, density, ring) of its coarse, fine and cross map of one class."""
    return ProposalEvidence(np.array(classes), np.array(boxes, np.float32)[:, None])


def test_class_scores__of_the_best_kind_there_is() -> None:
    whole = [(0.5, 0.5, 0.1), (0.8, 0.8, 0.1), (0.7, 0.7, 0.1)]
    part = [(0.4, 0.4, 0.1), (0.2, 0.8, 0.1), (0.0, 0.0, 0.0)]
    scores = class_scores(evidence(whole, part), (4, 9))
    assert scores[:, 0] == pytest.approx([0.8, 0.32])  # the fine map
    assert scores[:, 1].tolist() == [0, 0]
    for box in (whole, part):
        box[1] = (NAN, NAN, NAN)
    assert class_scores(evidence(whole, part), (4,))[:, 0] == pytest.approx([0.7, 0.0])  # the cross map
    for box in (whole, part):
        box[2] = (NAN, NAN, NAN)
    assert class_scores(evidence(whole, part), (4,))[:, 0] == pytest.approx([0.5, 0.4])  # the coarse map


def test_class_scores__without_a_usable_map() -> None:
    nothing = [(NAN, NAN, NAN)] * 3
    assert class_scores(evidence(nothing, nothing), (4,)).tolist() == [[0], [0]]
    assert class_scores(ProposalEvidence.empty(2), (4,)).tolist() == [[0], [0]]
    assert class_scores(ProposalEvidence.empty(0), (4,)).shape == (0, 1)


def test_factors__a_class_without_evidence_is_left_alone() -> None:
    found = factors(torch.tensor([[0.25, 0.0], [0.0, 0.0]]), 0.5)
    assert torch.allclose(found, torch.tensor([[0.5, 1.0], [FLOOR**0.5, 1.0]]))


def test_map_seeds__best_evidence_else_best_score() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.2, 0.1, 0.4], [0.7, 0.0, 0.3]])
    found = map_seeds(scores, torch.tensor([0, 2]), torch.tensor([[0.3, 0.0], [0.8, 0.0], [0.1, 0.0]]))
    assert found.index_S.tolist() == [1, 1]
    assert found.classes_S.tolist() == [0, 2]
    assert found.scores_S.tolist() == [1, 1]
    assert found.valid_S.all()


BOXES = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 40, 40], [60.0, 60, 90, 90], [5.0, 0, 45, 38]])
"""A part, the whole, something else, and a box close to the whole."""


def losses(config: WsodConfig, given: bool = True, progress: float = 0.0) -> dict[str, torch.Tensor]:
    """Losses of one image with tag 1 of 2 classes, whose scores prefer box 0 and whose maps prefer box 1."""
    logits = torch.tensor([[0.0, 4.0], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    refine = torch.zeros(4, 3)
    outputs = ProposalOutputs(
        logits, logits, [refine.clone() for _ in range(config.num_refinements)], [], None
    )
    maps = (torch.tensor([[0.2], [0.9], [0.05], [0.8]]),) if given else ()
    return wsod_losses(outputs, Bags([BOXES], [torch.tensor([1])], maps), config, progress)


def settings(**changes: float) -> WsodConfig:
    return WsodConfig.model_validate({"method": "oicr", "oicr": {"miner": "top1"}, **changes})


def test_losses__evidence_counts_only_where_asked_for() -> None:
    with_maps, without = losses(settings()), losses(settings(), given=False)
    assert {name: value.item() for name, value in with_maps.items()} == {
        name: value.item() for name, value in without.items()
    }


def test_losses__seeding_teaches_branch_1_the_box_of_the_maps_early_on() -> None:
    config = settings(evidence_seeding=0.5)
    early, late = losses(config, progress=0.4), losses(config, progress=0.5)
    # The box of the maps takes its neighbor along, the part of the scores nobody.
    assert early["_foreground1"].item() == 0.5
    assert late["_foreground1"].item() == 0.25
    assert early["_foreground2"].item() == late["_foreground2"].item()


def test_losses__mining_power_turns_the_choice_to_the_whole() -> None:
    assert losses(settings(evidence_mining_power=1.0))["_foreground1"].item() == 0.25
    assert losses(settings(evidence_mining_power=6.0))["_foreground1"].item() == 0.5


def test_losses__prior_moves_the_streams_of_tags_alone() -> None:
    plain, prior = losses(settings()), losses(settings(evidence_prior=4.0))
    assert prior["_foreground1"].item() == 0.5
    assert plain["_foreground1"].item() == 0.25
    assert losses(settings(evidence_prior=2.0), given=False)["image"] == plain["image"]


def test_weigh_by_evidence__a_class_the_classifier_does_not_see_counts_least() -> None:
    scored = ScoredProposals(torch.tensor([[0.8, 0.8], [0.4, 0.4]]), torch.zeros(2, 2, 4))
    found = weigh_by_evidence(scored, torch.tensor([[0.25, 0.0], [1.0, 0.0]]), 0.5)
    assert torch.allclose(found.scores_NC[:, 0], torch.tensor([0.4, 0.4]))
    assert torch.allclose(found.scores_NC[:, 1], torch.tensor([0.8, 0.4]) * FLOOR**0.5)
    assert torch.equal(weigh_by_evidence(scored, torch.rand(2, 2), 0.0).scores_NC, scored.scores_NC)
