"""Float32 inside a forward pass in mixed precision: boxes, coordinates and what is read off a mask's pixels.

A bfloat16 has 8 bits of mantissa: beyond 256 it tells no pixel from its neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def full_precision(like: Tensor) -> torch.autocast:
    """Return a context in which products on the tensor's device are computed in float32, under any autocast."""
    return torch.autocast(like.device.type, enabled=False)


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Ask torch for deterministic algorithms, or not, for a block."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


def run_in_full_precision(module: nn.Module) -> None:
    """Let a module compute in float32 from now on, under any autocast; its half-precision inputs are converted.

    Parameters keep their names, and a copy of the module does the same.
    """
    if not isinstance(module, _FullPrecision):
        module.__class__ = _full_precision_kind(type(module))


def give_full_precision(module: nn.Module) -> None:
    """Let a module compute as autocast says, and give its outputs (a tensor, or a tuple or list of them) in float32."""
    if not isinstance(module, _FullOutputs):
        module.__class__ = _full_outputs_kind(type(module))


class _FullPrecision(nn.Module):
    def forward(self, *values: Any, **named: Any) -> Any:
        device = next(self.parameters(), next(self.buffers(), torch.zeros(()))).device
        with torch.autocast(device.type, enabled=False):
            values = tuple(_full(value) for value in values)
            return super().forward(*values, **{name: _full(value) for name, value in named.items()})


class _FullOutputs(nn.Module):
    def forward(self, *values: Any) -> Any:
        outputs = super().forward(*values)
        if isinstance(outputs, Tensor):
            return _full(outputs)
        return type(outputs)(
            [_full(value) for value in part] if isinstance(part, list) else _full(part) for part in outputs
        )


def _full_precision_kind(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_FullPrecision, kind), {})


def _full_outputs_kind(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_FullOutputs, kind), {})


def _full(value: Any) -> Any:
    """The value in float32 if it is a tensor in half precision, else as it is."""
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value
