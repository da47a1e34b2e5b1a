"""Parameter groups by module, optimizers by name, schedules by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stages.core.settings import OptimizerName, ScheduleName
from stages.core.training.optimizers import build_optimizer, param_groups
from stages.core.training.schedule import build_schedule


class Network(nn.Module):
    """A backbone of two layers, a token and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)


def rates(model: nn.Module, groups: list[dict[str, object]]) -> dict[str, tuple[object, object]]:
    """Parameter name -> learning rate and weight decay."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        name_of[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]  # type: ignore[attr-defined]
    }


def test_param_groups__rate_by_module_and_decay_by_dimensions() -> None:
    model = Network()
    groups = param_groups(
        model, lr=1.0, weight_decay=0.1, module_lrs={model.backbone: 0.5}, bias_lr_factor=2.0, no_decay=[model.token]
    )  # fmt: skip
    assert rates(model, groups) == {
        "token": (2.0, 0.0),
        "backbone.0.weight": (0.5, 0.1),
        "backbone.1.weight": (0.5, 0.1),
        "backbone.0.bias": (1.0, 0.0),
        "backbone.1.bias": (1.0, 0.0),
        "head.weight": (1.0, 0.1),
        "head.bias": (2.0, 0.0),
    }
    assert [len(group["params"]) for group in groups] == [2, 2, 2, 1]


def test_param_groups__renaming_an_attribute_changes_nothing() -> None:
    model, renamed = Network(), Network()
    renamed.encoder = renamed.backbone
    del renamed.backbone
    before = param_groups(model, lr=1.0, weight_decay=0.1, module_lrs={model.backbone: 0.5})
    after = param_groups(renamed, lr=1.0, weight_decay=0.1, module_lrs={renamed.encoder: 0.5})
    shapes = [
        sorted((group["lr"], group["weight_decay"], len(group["params"])) for group in groups)
        for groups in (before, after)
    ]
    assert shapes[0] == shapes[1]


def test_param_groups__leaves_out_what_does_not_learn() -> None:
    model = Network()
    model.backbone[0].requires_grad_(False)
    groups = param_groups(
        model, lr=1.0, weight_decay=0.0, module_lrs={model.backbone[1]: 0.0}, skip=[model.head]
    )
    assert list(rates(model, groups)) == ["token"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_build_optimizer__keeps_the_groups(name: OptimizerName, kind: type[torch.optim.Optimizer]) -> None:
    model = Network()
    groups = param_groups(model, lr=0.3, weight_decay=0.2)
    optimizer = build_optimizer(name, groups)
    assert type(optimizer) is kind
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.3, 0.2),
        (0.3, 0.0),
    ]


@pytest.mark.parametrize("name", ["cosine", "multistep"])
def test_build_schedule__warm_up_starts_at_its_factor(name: ScheduleName) -> None:
    factor = build_schedule(name, 1000, 0.2, warmup_factor=1 / 3)
    assert [factor(step) for step in (0, 100, 200)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert build_schedule(name, 1000, 0.2)(0) == pytest.approx(0.001)


def test_build_schedule__milestones_are_fractions_of_the_training() -> None:
    factor = build_schedule("multistep", 100, 0.0, milestone_fractions=(0.5, 0.75))
    assert [factor(step) for step in (49, 50, 75)] == pytest.approx([1, 0.1, 0.01])


def test_build_schedule__cosine_over_the_warm_up_to_a_least_rate() -> None:
    factor = build_schedule("cosine", 60, 5 / 60, warmup_factor=0.02, min_lr_factor=0.2, warmup_prefix=False)
    assert [factor(step) for step in (0, 30, 60)] == pytest.approx([0.02, 0.6, 0.2])
    assert factor(5) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 12)))  # not 1: it began at step 0
