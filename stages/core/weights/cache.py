"""Where weights are kept, and which of them are there."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from stages.core.errors import EnvironmentFault
from stages.core.weights.table import EMBEDDED, Weights, find_weights, segmenter_kind

CACHE_VARIABLE: Final = "WEAKSAM_CACHE"
OFFLINE_VARIABLES: Final = ("WEAKSAM_OFFLINE", "HF_HUB_OFFLINE")
HUB_FILES: Final = ("*.json", "*.safetensors")
"""What is fetched of a hub repository: settings and weights that run no code when they are read."""


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """``$WEAKSAM_CACHE``, else the platform's cache folder for this project; need not exist."""
    environ = os.environ if environ is None else environ
    if given := environ.get(CACHE_VARIABLE):
        return Path(given)
    if sys.platform == "win32" and (local := environ.get("LOCALAPPDATA")):
        return Path(local) / "weaksam" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "weaksam"
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weaksam"


def offline(*, hub: bool = False, environ: Mapping[str, str] | None = None) -> bool:
    """Whether the environment forbids the network (the hub has a variable of its own, which it obeys)."""
    environ = os.environ if environ is None else environ
    names = OFFLINE_VARIABLES if hub else OFFLINE_VARIABLES[:1]
    return any(environ.get(name, "").strip().lower() not in ("", "0", "false", "no", "off") for name in names)


def file_path(entry: Weights) -> Path:
    """Where the file of an entry is, or would be."""
    if entry.shipped:
        return EMBEDDED / entry.shipped
    return cache_folder() / "weights" / entry.file_name


def cached(entry: Weights) -> Path | None:
    """The file, or the folder of a hub snapshot, if it is there whole; no network, no checksum."""
    if entry.hub:
        return _cached_snapshot(entry)
    path = file_path(entry)
    return path if path.is_file() else None


def cached_weights(name: str) -> Path:
    """Weights that a stage uses when no checkpoint is given.

    Raises:
        ConfigError: the table has no such name.
        EnvironmentFault: not there; the message names the command that fetches them.
    """
    entry = find_weights(name)
    found = cached(entry)
    if found is None:
        where = entry.hub or str(file_path(entry))
        raise EnvironmentFault(
            f"the weights of {name} are not there",
            where=where,
            hint="install weaksam again"
            if entry.shipped
            else f"weaksam weights get {name}, or give a checkpoint",
        )
    return found


def require_weights(name: str, checkpoint: str) -> None:
    """For the plan of a stage: stop before the run if a segmenter's weights or library are not there.

    Args:
        name: The segmenter.
        checkpoint: A file of the user's own in the place of the table's weights, or "".

    Raises:
        ConfigError: unknown segmenter.
        EnvironmentFault: what is missing, with the command that brings it.
    """
    segmenter_kind(name)
    entry = find_weights(name)
    if entry.hub and find_spec("transformers") is None:
        raise EnvironmentFault(
            f"the library of {name} is not there", where=name, hint='pip install "weaksam[hf]"'
        )
    if not checkpoint:
        cached_weights(name)


def _cached_snapshot(entry: Weights) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            entry.hub, revision=entry.revision, allow_patterns=list(HUB_FILES), local_files_only=True
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None
    folder = Path(found)
    # An interrupted download leaves a snapshot folder without its weights.
    return folder if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file() else None
