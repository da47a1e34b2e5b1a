"""One vocabulary of settings: the same name is the same declaration in every stage, and unused groups do not exist."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from stages.core.config import build_config, config_class
from stages.core.config.model import OnlyWith, setting_fields
from stages.core.errors import ConfigError
from stages.core.registry import CHAIN
from stages.core.settings import BackboneSettings
from stages.retrain.config import RetrainConfig
from stages.wsod.config import WsodConfig

ALIKE_IN_NAME = {
    "architecture",  # of a classifier, of a detector
    "max_proposals",  # propose: 0 is no limit
    "min_side_px",  # wsod: a proposal has a pixel at least
    "min_score_ratio",  # oicr: 0 would make a seed of everything
    "seed_nms_thresh",  # oicr: 0 is possible
}
UNBOUNDED = {"cam.test_logit_thresh"}


def declaration(field: FieldInfo) -> tuple[Any, list[Any]]:
    return field.annotation, sorted(repr(mark) for mark in field.metadata if not isinstance(mark, OnlyWith))


def test_settings__same_name_same_type_and_range() -> None:
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for stage in CHAIN:
        for path, field in setting_fields(config_class(stage)):
            found[path[-1]][".".join((stage, *path))] = declaration(field)
    for name, declarations in found.items():
        if name not in ALIKE_IN_NAME:
            first = next(iter(declarations.values()))
            assert all(one == first for one in declarations.values()), declarations


@pytest.mark.parametrize("stage", CHAIN)
def test_settings__numbers_have_a_range(stage: str) -> None:
    for path, field in setting_fields(config_class(stage)):
        name = ".".join((stage, *path))
        if field.annotation in (int, float) and name not in UNBOUNDED:
            assert any(hasattr(mark, "ge") or hasattr(mark, "gt") for mark in field.metadata), name


@pytest.mark.parametrize(
    ("architecture", "own", "other"),
    [
        ("faster-rcnn", "faster_rcnn.anchor_sizes", {"rt_detr": {"num_queries": "5"}}),
        ("rt-detr", "rt_detr.num_denoising", {"faster_rcnn": {"fc_dim": "64"}}),
        ("deformable-detr", "deformable_detr.num_queries", {"rt_detr": {"d_model": "32"}}),
    ],
)
def test_retrain__settings_of_other_architectures_are_neither_shown_nor_taken(
    architecture: str, own: str, other: dict[str, Any]
) -> None:
    chosen = {"architecture": architecture}
    config = build_config(RetrainConfig, [("--set", chosen)])
    names = dict(config.named_values())
    assert own in names
    assert {name.split(".")[0] for name in names if "." in name} == {own.split(".")[0]}
    assert not {name for name in config.model_dump() if name in other}
    with pytest.raises(ConfigError, match=rf"belongs to architecture .*, but architecture is {architecture}"):
        build_config(RetrainConfig, [("--set", chosen | other)])


def test_wsod__seeds_of_the_method_alone() -> None:
    for method, groups in (("mist", {"mist"}), ("oicr", {"oicr"}), ("wsddn", set())):
        names = dict(build_config(WsodConfig, [("--set", {"method": method})]).named_values())
        assert {name.split(".")[0] for name in names if "." in name} == groups
        assert ("num_refinements" in names) == (method != "wsddn")


def test_backbone_source__file_imagenet_or_nothing() -> None:
    assert BackboneSettings().backbone_source() is True
    assert BackboneSettings(pretrained=False, backbone_weights="w.safetensors").backbone_source() is False
    assert BackboneSettings(backbone_weights="w.safetensors").backbone_source() == Path("w.safetensors")
