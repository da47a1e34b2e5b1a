"""Multi-fold learning of evidence: the looks of other images correct the maps, and frozen features serve for it."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.core.backbones.timm_backbones import build_backbone
from stages.wsod.config import WsodConfig
from stages.wsod.evidence.frozen_features import STRIDES, FrozenFeatures, principal_components
from stages.wsod.evidence.multi_fold import Bag, correct

BOXES = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 40, 40], [60.0, 60, 90, 90]])
"""A part, the whole, something else."""
LOOKS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def bag(number: int, evidence: dict[int, list[float]]) -> Bag:
    noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(number)) * 0.05
    return Bag(BOXES, LOOKS + noise, {label: torch.tensor(own) for label, own in evidence.items()})


RIGHT, WRONG = [0.3, 0.6, 0.1], [0.62, 0.6, 0.1]
"""Maps that prefer the whole, and maps that prefer the part by a little."""


def test_correct__most_images_correct_the_few() -> None:
    bags = [bag(i, {4: WRONG if i == 2 else RIGHT}) for i in range(8)]
    bags += [bag(10 + i, {5: [0.1, 0.1, 0.6]}) for i in range(4)]
    found = correct(bags, folds=4)
    assert all(own[4].argmax() == 1 for own in found[:8])
    assert all(own[5].argmax() == 2 for own in found[8:])
    for own in found:
        for evidence in own.values():
            assert evidence.max() == 1
            assert evidence.min() >= 0


def test_correct__a_choice_is_not_confirmed_by_itself() -> None:
    # One image chose the part; had it taught its own model, that would have learned the part's looks from it.
    lonely = correct([bag(0, {4: WRONG}), bag(1, {5: RIGHT})], folds=2)
    assert torch.equal(lonely[0][4], torch.tensor(WRONG))
    assert torch.equal(lonely[1][5], torch.tensor(RIGHT))


def test_correct__images_without_evidence_follow_the_others() -> None:
    bags = [bag(i, {4: RIGHT}) for i in range(6)] + [bag(9, {4: [0.0, 0.0, 0.0]})]
    assert correct(bags, folds=3)[6][4].argmax() == 1
    nothing = [bag(i, {4: [0.0, 0.0, 0.0]}) for i in range(4)]
    assert all(not own[4].any() for own in correct(nothing, folds=2))


def test_principal_components__keep_what_varies_and_whiten_it() -> None:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(500, 4, generator=generator) * torch.tensor([5.0, 0.01, 2.0, 0.01]) + 3
    found = principal_components(sample, 2, whiten=False)
    kept, whole = found(sample).var(dim=0).sum().item(), sample.var(dim=0).sum().item()
    assert kept == pytest.approx(whole, rel=1e-3)
    white = principal_components(sample, 2, whiten=True)(sample)
    assert white.mean(dim=0).abs().max() < 1e-3
    assert (white.std(dim=0) > 0.5).all()
    assert (white.std(dim=0) < 1.1).all()


def test_frozen_features__of_any_image_and_the_same_again() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("lite0-embedded", STRIDES, pretrained=False).eval()
    images = {str(i): torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8) for i in range(3)}

    def load(image_id: str) -> tuple[Tensor, Tensor]:
        return images[image_id], torch.tensor([[0.0, 0, 30, 40], [10.0, 5, 90, 60], [40.0, 0, 96, 64]])

    features = FrozenFeatures(backbone, sorted(images), load, "cpu")
    found = features("1")
    assert found.shape[0] == 3
    assert found.isfinite().all()
    assert torch.equal(found, FrozenFeatures(backbone, sorted(images), load, "cpu")("1"))
    assert not torch.allclose(found[0], found[1])


def test_config__folds_need_a_use() -> None:
    for wrong in ({"evidence_folds": 1, "evidence_seeding": 1.0}, {"evidence_folds": 5}):
        with pytest.raises(ValidationError, match="evidence_folds"):
            WsodConfig.model_validate(wrong)
    assert WsodConfig.model_validate({"evidence_folds": 5, "evidence_seeding": 1.0}).evidence_folds == 5
