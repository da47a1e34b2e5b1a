"""The documentation site: every page is in its navigation, links work there, settings are complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.site_pages import SOURCES, STAGES, page_of, settings_section, site_links
from stages.core.config import config_class
from stages.core.config.model import setting_fields

ROOT = Path(__file__).resolve().parents[1]


def pages(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in pages(value)]


def test_navigation__has_every_page_once() -> None:
    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    written = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted([*SOURCES, *written]), "pages of docs/ are listed in mkdocs.yml"


@pytest.mark.parametrize(
    ("uri", "text", "expected"),
    [
        # a page beside it, with an anchor
        ("method.md", "[a](decisions.md#metrics)", "[a](decisions.md#metrics)"),
        # a file of the repository that is a page of the site
        ("stages-and-settings.md", "[cam](../stages/cam/README.md)", "[cam](stages/cam.md)"),
        ("architecture.md", "[r](../README.md#the-seven-stages)", "[r](index.md#the-seven-stages)"),
        # from the repository's root and from a stage's folder
        ("index.md", "![p](docs/images/stages.png)", "![p](images/stages.png)"),
        ("stages/wsod.md", "[b](../../docs/benchmarks.md#x)", "[b](../benchmarks.md#x)"),
        # a link that shows a file name shows the title of the page
        ("index.md", "[docs/results.md](docs/results.md): all", "[Results](results.md): all"),
        ("method.md", "[decisions.md](decisions.md)", "[Decisions](decisions.md)"),
        # files that are no pages
        ("clusters.md", "see [slurm/](../slurm).", "see slurm/."),
        ("index.md", "([LICENSE](LICENSE))", "(LICENSE)"),
        # left alone
        ("index.md", "[x](https://example.org/a.md) [y](#more)", "[x](https://example.org/a.md) [y](#more)"),
    ],
)
def test_site_links__of_the_repository_become_those_of_the_site(uri: str, text: str, expected: str) -> None:
    assert site_links(text, uri) == expected


def test_page_of__files_of_docs_and_no_others() -> None:
    assert page_of("docs/notebooks/demo.ipynb") == "notebooks/demo.ipynb"
    assert page_of("stages/cam/config.py") is None


@pytest.mark.parametrize("stage", STAGES)
def test_settings_section__has_every_setting_with_default_and_range(stage: str) -> None:
    model = config_class(stage)
    rows = re.findall(
        r"^\| `([\w.]+)` \| `(.*?)` \| (.+?) \| (.+?) \|$", settings_section(model), re.MULTILINE
    )
    assert sorted(name for name, *_ in rows) == sorted(".".join(name) for name, _ in setting_fields(model))
    main = [name for name, *_ in rows][: len(model.main_settings)]
    assert main == list(model.main_settings)
