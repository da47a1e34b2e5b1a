"""Weights as safetensors with JSON metadata: which model, which classes, made from what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.core.artifacts.files import atomic_path
from stages.core.errors import MissingInputError, SchemaError
from stages.core.runtime.processes import is_main, wait_for_all

METADATA_KEY = "weaksam"


def save_weights(path: Path, module: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a module's state atomically; the same state and metadata give the same bytes.

    All processes call it: the main one writes, and when it returns the file is there for all.

    Args:
        path: Output file.
        module: Its ``state_dict`` is stored in the module's own precision, on the CPU.
        metadata: JSON-able facts from which the module can be rebuilt (model, classes, settings).
    """
    if is_main():
        state = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()
        }
        with atomic_path(path) as temporary:
            save_file(state, temporary, {METADATA_KEY: json.dumps(dict(metadata), sort_keys=True)})
    wait_for_all()


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a weights file without loading the tensors.

    Raises:
        MissingInputError: no such file.
        SchemaError: not a safetensors file of this project.
    """
    if not path.is_file():
        raise MissingInputError("no such checkpoint", where=path, hint="train on the train split first")
    try:
        with safe_open(path, framework="pt") as file:
            loaded = json.loads((file.metadata() or {})[METADATA_KEY])
    except RecursionError:
        raise SchemaError("not a weaksam checkpoint (metadata nested too deep)", where=path) from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise SchemaError(f"not a weaksam checkpoint ({error})", where=path) from error
    if not isinstance(loaded, dict):
        raise SchemaError("not a weaksam checkpoint (metadata is not a mapping)", where=path)
    return loaded


def load_weights(path: Path, module: nn.Module, expect: Mapping[str, Any]) -> None:
    """Load weights strictly into a module, if their metadata agree.

    Args:
        path: A file of :func:`save_weights`.
        module: Built as the metadata says.
        expect: Metadata that must agree, e.g. ``{"classes": [...]}``.

    Raises:
        SchemaError: metadata or tensors do not fit; the message names the first differences.
    """
    metadata = read_metadata(path)
    for key, value in expect.items():
        if metadata.get(key) != value:
            raise SchemaError(
                f"made for {key} {_short(metadata.get(key))}, {_short(value)} expected",
                where=path,
                hint="use a checkpoint trained for this data set and detector",
            )
    load_tensors(path, module)


def load_tensors(path: Path, module: nn.Module) -> None:
    """Load weights strictly into a module that was built by their metadata.

    Raises:
        SchemaError: damaged, or tensors that do not fit; the message names the first differences.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SchemaError(f"damaged ({error})", where=path, hint="train again with --overwrite") from error
    problem = state_mismatch(module, state)
    if problem is not None:
        raise SchemaError(problem, where=path, hint="use a checkpoint of the same architecture")
    if (name := not_finite(state)) is not None:
        raise SchemaError(f"tensor {name!r} holds values that are not finite", where=path, hint="train again")
    module.load_state_dict(state)


def state_mismatch(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Say how a state dict differs from what a module expects, or None."""
    own = module.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [
        f"{k} is {tuple(state[k].shape)}, {tuple(own[k].shape)} expected"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if not (missing or extra or shapes):
        return None
    parts = [
        f"lacks {missing[:3]} ({len(missing)})" if missing else "",
        f"has unknown {extra[:3]} ({len(extra)})" if extra else "",
    ]
    parts.append("; ".join(shapes[:3]) + (f" ({len(shapes)} shapes)" if len(shapes) > 3 else ""))
    return "tensors do not fit the model: " + "; ".join(part for part in parts if part)


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return the first tensor with a NaN or an infinity, or None."""
    return next(
        (name for name, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())), None
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write resumable training state atomically; loadable with ``weights_only=True``."""
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Read resumable training state.

    Raises:
        SchemaError: damaged.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        raise SchemaError(
            f"training state is damaged ({error})", where=path, hint="--overwrite to start from scratch"
        ) from error
    assert isinstance(loaded, dict)
    return loaded
