"""Facts about where a run happened, for manifests and ``weaksam doctor``."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

RECORDED_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "segment-anything",
    "numpy",
    "h5py",
    "pycocotools",
    "opencv-python",
)
"""Needed by every installation; ``weaksam doctor`` reports those that are missing."""
OPTIONAL_PACKAGES = ("transformers",)


def package_version() -> str:
    """Return the version of the installed package, or ``0+source`` in a bare checkout."""
    try:
        return importlib.metadata.version("weaksam")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def command_line() -> list[str]:
    """Return the command of this process: ``weaksam`` and its arguments, or the program that runs a stage itself.

    A notebook or a prompt has no command of its own; what its kernel was started with says nothing.
    """
    program = Path(sys.argv[0])
    if program.stem == "weaksam" or program.parent.name == "weaksam_cli":
        return ["weaksam", *sys.argv[1:]]
    if not program.name or program.name == "-c" or "ipykernel" in sys.modules:
        return ["python"]
    return [program.name, *sys.argv[1:]]


@cache
def git_state() -> str | None:
    """Return the commit of the source tree, with ``-dirty`` if it has changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}{'-dirty' if dirty else ''}"


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return result.stdout.strip()


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that decide results; absent ones are left out."""
    versions = {}
    for name in (*RECORDED_PACKAGES, *OPTIONAL_PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def environment_facts(device: str) -> dict[str, str]:
    """Return Python, platform, package versions and device of this process."""
    facts = {"python": platform.python_version(), "platform": platform.platform(), "device": device}
    if device.startswith("cuda"):
        import torch

        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts | installed_versions()
