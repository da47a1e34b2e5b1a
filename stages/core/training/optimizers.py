"""Optimizers and their parameter groups, by module: which part of a network learns how fast, and what decays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from stages.core.settings import OptimizerName

ParamGroup = dict[str, Any]
Decay = Literal["matrices", "weights", "matrices-and-biases"]
SGD_MOMENTUM = 0.9


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    module_lrs: Mapping[nn.Module, float] | None = None,
    bias_lr_factor: float = 1.0,
    decay: Decay = "matrices",
    no_decay: Sequence[nn.Parameter] = (),
    skip: Sequence[nn.Module] = (),
) -> list[ParamGroup]:
    """Sort the trainable parameters of a network into groups of one learning rate and one weight decay.

    By default parameters with one dimension (biases, norms) have no weight decay.

    Args:
        model: The network; parameters that need no gradient are left out.
        lr: Learning rate of what `module_lrs` does not name.
        weight_decay: Of parameters with two dimensions or more.
        module_lrs: Learning rates of modules inside the network, which do not overlap. A module with rate 0 is left
            out: Adam would still carry state for it.
        bias_lr_factor: Factor on the learning rate of parameters without weight decay.
        decay: What has weight decay: `matrices` (and kernels), `weights` (scales of norms, too), or
            `matrices-and-biases`.
        no_decay: Further parameters without weight decay, such as tokens and positions.
        skip: Modules with an optimizer of their own.

    Returns:
        Groups in the order of their first parameter, and parameters in the order of the network.
    """
    lr_of = {
        id(parameter): module_lr
        for module, module_lr in (module_lrs or {}).items()
        for parameter in module.parameters()
    }
    skipped = _ids(parameter for module in skip for parameter in module.parameters())
    undecayed = _ids(no_decay)
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    norms = {
        id(parameter) for module in model.modules() if _is_norm(module) for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters():
        own_lr = lr_of.get(id(parameter), lr)
        if parameter.requires_grad and own_lr > 0 and id(parameter) not in skipped:
            bias = name.endswith("bias")
            decays = parameter.ndim > 1 or (
                (decay == "weights" and not bias)
                or (decay == "matrices-and-biases" and bias and id(parameter) not in norms)
            )
            decays = decays and id(parameter) not in undecayed
            members.setdefault((own_lr, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": own_lr if decays else own_lr * bias_lr_factor,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (own_lr, decays), parameters in members.items()
    ]


def build_optimizer(name: OptimizerName, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
    """Build the optimizer of `param_groups`: SGD with momentum 0.9, Adam (coupled weight decay) or AdamW."""
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=SGD_MOMENTUM)
    return (torch.optim.Adam if name == "adam" else torch.optim.AdamW)(groups)


def _ids(parameters: Iterable[nn.Parameter]) -> set[int]:
    return {id(parameter) for parameter in parameters}


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)
