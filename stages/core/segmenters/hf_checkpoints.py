"""Models of the transformers library from a folder of ``save_pretrained`` or from the hub; the extra ``hf``.

Only settings (JSON) and safetensors are read: nothing in a checkpoint can run code. Every tensor of the model
must be in the file with its shape; the library itself would fill gaps with random numbers and a warning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from stages.core.errors import EnvironmentFault, SchemaError
from stages.core.segmenters.hf_segmenters import HfHqSegmenter, HfSamSegmenter, HfSegmenter
from stages.core.weights.cache import cached_weights
from stages.core.weights.download import fetch
from stages.core.weights.table import Weights


@dataclass(frozen=True)
class Family:
    """Models of one kind.

    Attributes:
        prefix: Segmenter names of the family begin so.
        model_class: Class of the transformers library.
        model_types: ``model_type`` of fitting ``config.json``; checkpoints of the video models hold the image
            model whole.
        adapter: Our side.
    """

    prefix: str
    model_class: str
    model_types: tuple[str, ...]
    adapter: type[HfSegmenter]


FAMILIES: Final = (
    Family("sam2", "Sam2Model", ("sam2", "sam2_video"), HfSegmenter),
    Family("hq-sam", "SamHQModel", ("sam_hq",), HfHqSegmenter),
    Family("edgetam", "EdgeTamModel", ("edgetam", "edgetam_video"), HfSegmenter),
    Family("hf-sam", "SamModel", ("sam",), HfSamSegmenter),
)
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


def family_of(kind: str) -> Family | None:
    """The family of a segmenter by its name, None if it is not one of these."""
    return next((family for family in FAMILIES if kind.startswith(family.prefix)), None)


def load_hf_segmenter(name: str, family: Family, checkpoint: Path | None, device: str) -> HfSegmenter:
    """Load a segmenter.

    Args:
        name: Segmenter name; names the weights that are taken when no checkpoint is given.
        family: What the weights must be.
        checkpoint: A folder written by ``save_pretrained`` (of model and processor), or a hub id.
        device: Torch device string.

    Raises:
        EnvironmentFault: the extra is not installed, or the weights are not there.
        SchemaError: weights of another kind, damaged or incomplete.
    """
    transformers = require_transformers()
    folder = weights_folder(name, checkpoint)
    check_model_type(folder, family)
    with _quiet(transformers):
        model = _load_model(transformers, family, folder)
        processor = _load_processor(transformers, folder)
    segmenter = family.adapter(name, model.to(device), processor)
    _check_processor(segmenter, folder)
    return segmenter


def require_transformers() -> Any:
    """The library.

    Raises:
        EnvironmentFault: not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise EnvironmentFault(
            f"this segmenter needs the transformers library ({error})",
            where="segmenter",
            hint='pip install "weaksam[hf]"',
        ) from error
    return transformers


def weights_folder(name: str, checkpoint: Path | None) -> Path:
    """Where the weights are: the folder given, the hub id given (fetched if need be), or the cached ones.

    Raises:
        EnvironmentFault: not there and not to be had.
        SchemaError: a file where a folder is needed.
    """
    if checkpoint is None:
        return cached_weights(name)
    if checkpoint.is_dir():
        return checkpoint
    if checkpoint.is_file():
        raise SchemaError(
            f"{name} is loaded from a folder written by save_pretrained, not from a file",
            where=checkpoint,
            hint="give the folder, or a hub id such as facebook/sam2.1-hiera-tiny",
        )
    if _HUB_ID.fullmatch(checkpoint.as_posix()):
        return fetch(Weights(checkpoint.as_posix(), hub=checkpoint.as_posix())).path
    raise EnvironmentFault(
        "no such folder of segmenter weights",
        where=checkpoint,
        hint=f"check the path, or weaksam weights get {name}",
    )


def check_model_type(folder: Path, family: Family) -> None:
    """Look at ``config.json`` before anything is built.

    Raises:
        SchemaError: none, or of another kind; the message names both.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise SchemaError(
            f"no readable config.json ({error})", where=folder, hint="give a folder of save_pretrained"
        ) from error
    if found not in family.model_types:
        fitting = next((other.prefix for other in FAMILIES if found in other.model_types), None)
        raise SchemaError(
            f"weights of '{found}', not of '{family.model_types[0]}'",
            where=folder,
            hint=f"set segmenter to one of {fitting}..." if fitting else "give a checkpoint of this model",
        )


def _load_model(transformers: Any, family: Family, folder: Path) -> Any:
    try:
        model, report = getattr(transformers, family.model_class).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True,
            dtype=torch.float32, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # the library raises many types for a damaged file or config
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise SchemaError(
            f"cannot be read as {family.model_class} ({reason})",
            where=folder,
            hint="fetch or save it again",
        ) from error
    missing, shapes = sorted(report["missing_keys"]), sorted(map(str, report["mismatched_keys"]))
    if missing or shapes:
        lacks = f"lacks {missing[:3]} ({len(missing)})" if missing else ""
        differs = f"has other shapes: {shapes[:2]} ({len(shapes)})" if shapes else ""
        raise SchemaError(
            f"weights do not fill {family.model_class}: "
            + "; ".join(part for part in (lacks, differs) if part),
            where=folder,
            hint="give weights that belong to the config.json beside them",
        )
    return model


def _load_processor(transformers: Any, folder: Path) -> Any:
    try:
        return transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise SchemaError(
            "no settings of an image processor beside the weights",
            where=folder,
            hint="save the processor into the same folder: processor.save_pretrained(folder)",
        ) from error


def _check_processor(segmenter: HfSegmenter, folder: Path) -> None:
    """The processor must make images of the size the model was built for."""
    size = dict(segmenter.processor.size)
    sides = {int(size[key]) for key in ("height", "width", "longest_edge") if size.get(key)}
    if sides != {segmenter.input_size}:
        raise SchemaError(
            f"the image processor makes {sorted(sides)} px, the model takes {segmenter.input_size} px",
            where=folder,
            hint="save the processor that belongs to the model",
        )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no remarks of the library while it loads."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
