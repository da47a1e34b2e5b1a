"""Segment Anything models from files: the shipped sam-nano, and the published ViT checkpoints."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import segment_anything
import torch
from safetensors import SafetensorError, safe_open
from segment_anything.modeling import Sam
from torch import Tensor

from stages.core.errors import ConfigError, EnvironmentFault, SchemaError, did_you_mean
from stages.core.training.weights_io import state_mismatch
from stages.core.vision.sam_nano import ARCHITECTURE, build_sam_nano

NANO: Final = "sam-nano"
NANO_FILE: Final = Path(__file__).resolve().parents[1] / "embedded" / "sam_nano.safetensors"
VIT_BUILDERS: Final[Mapping[str, str]] = {"sam-vit-b": "vit_b", "sam-vit-l": "vit_l", "sam-vit-h": "vit_h"}
PUBLISHED_FILES: Final[Mapping[str, str]] = {
    "sam-vit-b": "sam_vit_b_01ec64.pth",
    "sam-vit-l": "sam_vit_l_0b3195.pth",
    "sam-vit-h": "sam_vit_h_4b8939.pth",
}
# The width of the ViT names the model that a checkpoint was saved from.
VIT_OF_WIDTH: Final[Mapping[int, str]] = {768: "sam-vit-b", 1024: "sam-vit-l", 1280: "sam-vit-h"}


def load_sam(name: str, checkpoint: Path | None) -> Sam:
    """Build a model and load its weights, on the CPU, in evaluation mode.

    Args:
        name: ``sam-nano``, ``sam-vit-b``, ``sam-vit-l`` or ``sam-vit-h``.
        checkpoint: A ``.safetensors`` file of sam-nano, a ``.pth`` file as published for the others; None takes
            the weights shipped with the package.

    Raises:
        ConfigError: unknown name.
        EnvironmentFault: the weights are not there.
        SchemaError: the file is damaged or holds another architecture.
    """
    if name == NANO:
        return load_nano(checkpoint or NANO_FILE)
    if name not in VIT_BUILDERS:
        raise ConfigError(
            f"unknown segmenter '{name}'", where="segmenter", remedy=did_you_mean(name, [NANO, *VIT_BUILDERS])
        )
    if checkpoint is None:
        raise EnvironmentFault(
            f"{name} has no shipped weights",
            where="checkpoint",
            remedy=f"download {PUBLISHED_FILES[name]} and give its path, or use the shipped {NANO}",
        )
    state = read_published(checkpoint)
    return _fill(segment_anything.sam_model_registry[VIT_BUILDERS[name]], state, name, checkpoint)


def load_nano(path: Path) -> Sam:
    """Load sam-nano from a float16 safetensors file; computing is done in float32.

    Raises:
        EnvironmentFault: no such file.
        SchemaError: damaged, or made for another architecture.
    """
    _require(path, "reinstall weaksam, or train it: python -m stages.core.vision.nano_training --help")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("architecture")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise SchemaError(f"damaged weights ({error})", where=path, remedy="restore the file") from error
    if found != ARCHITECTURE:
        raise SchemaError(
            f"weights of '{found}', not of '{ARCHITECTURE}'", where=path, remedy="use weights of this version"
        )
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    return _fill(build_sam_nano, state, NANO, path)


def read_published(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint as published by Segment Anything, without running any code in it.

    Raises:
        EnvironmentFault: no such file.
        SchemaError: damaged, or not a plain mapping of tensors.
    """
    _require(path, "check the path, or use the shipped sam-nano")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise SchemaError(f"damaged checkpoint ({reason})", where=path, remedy="download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SchemaError(
            "not a mapping of tensor names to tensors", where=path, remedy="use a file as published"
        )
    return state


def _require(path: Path, remedy: str) -> None:
    if not path.is_file():
        raise EnvironmentFault("no such file of segmenter weights", where=path, remedy=remedy)


def _fill(build: Callable[[], Sam], state: dict[str, Tensor], name: str, path: Path) -> Sam:
    """Load weights strictly, except for BatchNorm's step counters, which nothing reads."""
    # Compared before the model is built: a wrong ViT-H costs seconds and gigabytes.
    width = state.get("image_encoder.pos_embed")
    found = None if width is None else VIT_OF_WIDTH.get(int(width.shape[-1]))
    if found is not None and found != name:
        raise SchemaError(
            f"weights of {found}, not of {name} (pos_embed is {tuple(width.shape) if width is not None else ()})",
            where=path,
            remedy=f"set segmenter={found}, or give a checkpoint of {name}",
        )
    sam: Any = build()
    counters = {key: value for key, value in sam.state_dict().items() if key.endswith("num_batches_tracked")}
    problem = state_mismatch(sam, {**counters, **state})
    if problem is not None:
        raise SchemaError(
            f"not weights of {name}: {problem}", where=path, remedy=f"give a checkpoint of {name}"
        )
    sam.load_state_dict({**counters, **state})
    loaded: Sam = sam.eval()
    return loaded
