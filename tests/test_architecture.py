"""The shape of the source tree, as docs/architecture.md describes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.architecture_picture import Arrow, arrows
from stages.core.registry import Step

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FOLDERS = sorted({module.parent for module in ROOT.glob("stages/**/*.py")})
MOST_MODULES = 15


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_folder__is_small_enough_to_read_at_a_glance(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= MOST_MODULES


def test_page__describes_every_package_of_the_shared_library() -> None:
    table = PAGE.split("## The shared library")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    described = {name for cell in cells for name in re.findall(r"`(\w+)/?`", cell)}
    core = ROOT / "stages" / "core"
    packages = {folder.name for folder in core.iterdir() if (folder / "__init__.py").is_file()}
    modules = {module.stem for module in core.glob("*.py")} - {"__init__"}
    assert described == packages | modules


def test_page__names_files_that_exist() -> None:
    named = {name for name in re.findall(r"`((?:core|stages|tests|docs|weaksam_cli)/[\w./]+)`", PAGE)}
    assert len(named) > 20
    missing = [name for name in named if not ((ROOT / name).exists() or (ROOT / "stages" / name).exists())]
    assert missing == []


def test_picture__has_an_arrow_for_every_file_between_stages() -> None:
    drawn = arrows()
    assert Arrow(Step("pgt", "train"), Step("wsis", "train"), "pgt.json") in drawn
    assert Arrow(Step("retrain", "train"), Step("retrain", "test"), "detector.safetensors") in drawn
    assert not [arrow for arrow in drawn if (arrow.source.role, arrow.target.role) == ("test", "train")]
