"""Segment Anything models from files: the shipped sam-nano, and the published ViT checkpoints."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import segment_anything
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

from stages.core.errors import ConfigError, EnvironmentFault, SchemaError, did_you_mean
from stages.core.segmenters.checkpoint_identification import recognise
from stages.core.segmenters.sam_nano import ARCHITECTURE, build_sam_nano, input_size_of
from stages.core.weights.cache import cached_weights
from stages.core.weights.checkpoints import not_finite, state_mismatch
from stages.core.weights.checks import file_is_markup
from stages.core.weights.table import EMBEDDED

NANO: Final = "sam-nano"
NANO_FILE: Final = EMBEDDED / "sam_nano.safetensors"
VIT_BUILDERS: Final[Mapping[str, str]] = {"sam-vit-b": "vit_b", "sam-vit-l": "vit_l", "sam-vit-h": "vit_h"}


def load_sam(name: str, checkpoint: Path | None) -> Sam:
    """Build a model and load its weights, on the CPU, in evaluation mode.

    Args:
        name: ``sam-nano``, ``sam-vit-b``, ``sam-vit-l`` or ``sam-vit-h``.
        checkpoint: A ``.safetensors`` file of sam-nano, a file as published for the others; None takes the weights
            shipped with the package, or those that ``weaksam weights get`` fetched.

    Raises:
        ConfigError: unknown name.
        EnvironmentFault: the weights are not there.
        SchemaError: the file is damaged or holds another architecture.
    """
    if name == NANO:
        return load_nano(checkpoint or NANO_FILE)
    if name not in VIT_BUILDERS:
        raise ConfigError(
            f"unknown segmenter '{name}'", where="segmenter", hint=did_you_mean(name, [NANO, *VIT_BUILDERS])
        )
    checkpoint = checkpoint or cached_weights(name)
    state = read_published(checkpoint)
    return _fill(segment_anything.sam_model_registry[VIT_BUILDERS[name]], state, name, checkpoint)


def load_nano(path: Path) -> Sam:
    """Load sam-nano from a float16 safetensors file, at the input size that the file names; computing is in float32.

    Raises:
        EnvironmentFault: no such file.
        SchemaError: damaged, or made for another architecture.
    """
    _require(path, "reinstall weaksam, or train it: sam_nano_training/README.md in the repository")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("architecture")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise SchemaError(f"damaged weights ({error})", where=path, hint="restore the file") from error
    image_size = input_size_of(str(found))
    if image_size is None or image_size % 32:
        raise SchemaError(
            f"weights of '{found}', not of '{ARCHITECTURE}'", where=path, hint="use weights of this version"
        )
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    return _fill(partial(build_sam_nano, image_size=image_size), state, NANO, path)


def read_published(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint as published by Segment Anything, without running any code in it.

    Raises:
        EnvironmentFault: no such file.
        SchemaError: a web page, damaged, or not a plain mapping of tensors.
    """
    _require(path, "check the path, fetch it with `weaksam weights get NAME`, or use the shipped sam-nano")
    if file_is_markup(path):
        raise SchemaError(
            "a web page, not weights: a failed download was saved under this name",
            where=path,
            hint="remove it and fetch it with `weaksam weights get NAME`",
        )
    try:
        state: Any = _read_tensors(path)
    except (
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        AssertionError,
        RecursionError,
    ) as error:  # what the reader of pickled data meets in nonsense
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise SchemaError(f"damaged checkpoint ({reason})", where=path, hint="download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        inner = state.get("model") if isinstance(state, dict) else None
        found = recognise(inner) if isinstance(inner, dict) else None
        raise SchemaError(
            "not a mapping of tensor names to tensors" + (f", but {found}" if found else ""),
            where=path,
            hint="use a file as published by segment-anything",
        )
    return state


def _read_tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    # Mapped, a file is read as far as it is used; the old format cannot be.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _require(path: Path, hint: str) -> None:
    if not path.is_file():
        raise EnvironmentFault("no such file of segmenter weights", where=path, hint=hint)


def _fill(build: Callable[[], Sam], state: dict[str, Tensor], name: str, path: Path) -> Sam:
    """Load weights strictly, except for BatchNorm's step counters, which nothing reads."""
    # Compared before the model is built: a wrong ViT-H costs seconds and gigabytes.
    found = recognise(state)
    if found is not None and found != name:
        raise SchemaError(
            f"weights of {found}, not of {name}",
            where=path,
            hint=f"set segmenter={found}, or give a checkpoint of {name}"
            if found in VIT_BUILDERS
            else f"give a checkpoint of {name}",
        )
    sam: Any = build()
    whole = with_counters(sam, state)
    problem = state_mismatch(sam, whole)
    if problem is not None:
        raise SchemaError(
            f"not weights of {name}: {problem}", where=path, hint=f"give a checkpoint of {name}"
        )
    if (key := not_finite(whole)) is not None:
        raise SchemaError(
            f"tensor {key!r} holds values that are not finite", where=path, hint="fetch the weights again"
        )
    sam.load_state_dict(whole)
    loaded: Sam = sam.eval()
    return loaded


def with_counters(sam: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state with the model's own step counters of BatchNorm where it has none."""
    counters = {key: value for key, value in sam.state_dict().items() if key.endswith("num_batches_tracked")}
    return {**counters, **state}
