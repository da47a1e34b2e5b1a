"""Batch normalisation over the images of all processes, so that cutting a batch up does not change it.

torch's own SyncBatchNorm works on GPUs only; this is the same in differentiable collectives, on any device, and is
put over layers that are there, timm's fused ones included.
"""

from __future__ import annotations

import types
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from stages.core.runtime.processes import world


def synchronise(model: nn.Module) -> list[nn.Module]:
    """Let every batch normalisation that learns from batches use those of all processes; return these layers.

    Nothing is changed in a single process. `release` undoes it.
    """
    if world() == 1:
        return []
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)  # type: ignore[method-assign]
    return list(layers)


def running_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What a pass in training mode changes beside gradients: (buffer, copy) of every layer that learns from batches."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    return [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]


def release(layers: list[nn.Module]) -> None:
    """Give layers their own forward pass back."""
    for layer in layers:
        layer.__dict__.pop("forward", None)


def _forward(layer: Any, values: Tensor) -> Tensor:
    if not layer.training:
        return type(layer).forward(layer, values)  # type: ignore[no-any-return]
    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, -1] + [1] * (values.ndim - 2)
    wide = values.float()
    count = values.new_full((1,), values.numel() / values.shape[1], dtype=torch.float32)
    sums = torch.cat([wide.sum(axes), count])
    n_channels = values.shape[1]
    summed = _sum(sums)
    mean_C, rows = summed[:n_channels] / summed[n_channels], float(summed[n_channels].detach())
    centred = wide - mean_C.reshape(shape)
    variance_C = _sum(centred.square().sum(axes)) / rows
    out: Tensor = centred / torch.sqrt(variance_C + layer.eps).reshape(shape)
    if layer.affine:
        out = out * layer.weight.reshape(shape) + layer.bias.reshape(shape)
    if layer.track_running_stats:
        _update_running(layer, mean_C.detach(), variance_C.detach() * rows / max(rows - 1.0, 1.0))
    out = out.to(values.dtype)
    # timm's fused layers carry their dropout and activation.
    for name in ("drop", "act"):
        following = getattr(layer, name, None)
        if isinstance(following, nn.Module):
            out = following(out)
    return out


def _sum(values: Tensor) -> Tensor:
    """Sum over the processes that passes gradients on."""
    return cast(Tensor, all_reduce(values))  # type: ignore[no-untyped-call]


def _update_running(layer: Any, mean_C: Tensor, variance_C: Tensor) -> None:
    layer.num_batches_tracked.add_(1)
    momentum = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
    layer.running_mean.lerp_(mean_C.to(layer.running_mean), momentum)
    layer.running_var.lerp_(variance_C.to(layer.running_var), momentum)
