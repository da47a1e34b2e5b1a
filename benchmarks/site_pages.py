"""Pages of the documentation site that lie outside ``docs/``; mkdocs calls the functions ``on_*`` (mkdocs.yml).

README, CONTRIBUTING and CHANGELOG become pages as they are, the README of each stage with tables of its settings,
generated from its config. Links are those of the repository: they are turned into links of the site where there is
such a page, and into plain text where there is none (a script, a licence).
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

from stages.core.config import OnlyWith, StageConfig, config_class
from stages.core.config.model import setting_fields
from stages.core.config.values import format_value, type_words
from stages.core.registry import CHAIN

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page
    from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
STAGES = (*CHAIN, "predict")
SOURCES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    **{f"stages/{stage}.md": f"stages/{stage}/README.md" for stage in STAGES},
}
"""Page of the site -> file of the repository, for those outside ``docs/``."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("http://", "https://", "mailto:")

SettingName = tuple[str, ...]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside ``docs/``."""
    for uri, source in SOURCES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        stage = Path(uri).stem
        if uri.startswith("stages/"):
            text = f"{text}\n{settings_section(config_class(stage))}"
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the repository's links into the site's, outside of code blocks."""
    uri = page.file.src_uri
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [site_links(markdown[end : fence.start()], uri), fence.group()]
        end = fence.end()
    return "".join([*parts, site_links(markdown[end:], uri)])


def site_links(text: str, uri: str) -> str:
    """Return text of a page with links that work on the site.

    Args:
        text: Markdown without code blocks.
        uri: The page, relative to the root of the site.
    """
    source = SOURCES.get(uri, f"docs/{uri}")

    def replaced(match: re.Match[str]) -> str:
        image, label, path, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        if not path or path.startswith(ELSEWHERE):
            return match.group()
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        found = page_of(target)
        if found is None:
            return label
        link = posixpath.relpath(found, posixpath.dirname(uri) or ".")
        shown = title_of(target) if label in (path, posixpath.basename(path)) else label
        return f"{image}[{shown}]({link}{anchor})"

    return LINK.sub(replaced, text)


def page_of(file: str) -> str | None:
    """Return the page or file of the site that a file of the repository becomes; None if it is not on the site."""
    for uri, source in SOURCES.items():
        if file == source:
            return uri
    return os.path.relpath(file, "docs") if file.startswith("docs/") else None


@functools.cache
def title_of(file: str) -> str:
    """Return the heading of a page of the repository, or the name of any other file."""
    if not file.endswith(".md"):
        return posixpath.basename(file)
    heading = re.search(r"^# (.+)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    return heading.group(1) if heading else posixpath.basename(file)


def settings_section(model: type[StageConfig]) -> str:
    """Return all settings of a stage as tables: those that matter most, the others, and each group."""
    fields = dict(setting_fields(model))
    main = [tuple(name.split(".")) for name in model.main_settings]
    rest = [name for name in fields if name not in main]
    groups: dict[str, list[SettingName]] = {"### Those that matter most": main}
    for name in rest:
        groups.setdefault("### Others" if len(name) == 1 else _group_heading(model, name[0]), []).append(name)
    if not main:
        groups = {"": rest}
    intro = f"Each is a flag of `weaksam {model.stage()}`, a YAML key, and a key of `--set` and of the Python API.\n"
    if model.stage() not in CHAIN:
        intro = f"Flags of `weaksam {model.stage()}` set them.\n"
    tables = [_table(heading, {name: fields[name] for name in names}) for heading, names in groups.items()]
    return "\n".join(["## Settings\n", intro, *tables])


def _group_heading(model: type[StageConfig], group: str) -> str:
    condition = _condition(model.model_fields[group])
    return f"### `{group}`" + (f": {condition}" if condition else "")


def _condition(field: FieldInfo) -> str:
    found = " and ".join(str(mark) for mark in field.metadata if isinstance(mark, OnlyWith))
    return f"only with {found}" if found else ""


def _table(heading: str, fields: dict[SettingName, FieldInfo]) -> str:
    if not fields:
        return ""
    rows = [_row(name, field) for name, field in fields.items()]
    head = ["| setting | default | value | |", "|---|---|---|---|"]
    return "\n".join([f"{heading}\n", *head, *rows, ""])


def _row(name: SettingName, field: FieldInfo) -> str:
    default = format_value(field.get_default(call_default_factory=True)) or "empty"
    meaning = ". ".join(part for part in (field.description or "", _condition(field)) if part)
    cells = (f"`{'.'.join(name)}`", f"`{default}`", type_words(field), meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |"
