"""README and docs: commands parse, links resolve, recipes and settings exist, scripts are sound."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from stages.core.config import config_class, recipe_names
from stages.core.registry import CHAIN
from weaksam_cli.examples import EXAMPLES
from weaksam_cli.main import build_app
from weaksam_cli.setting_flags import given_settings
from weaksam_cli.stage_command import resolve_settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "data" / "README.md",
        *ROOT.glob("stages/**/README.md"),
        ROOT / "sam_nano_training" / "README.md",
    ]
)
SCRIPTS = sorted(ROOT.glob("slurm/*.sh"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    ((?:weaksam|make) .*)$", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def shown_commands(program: str) -> list[tuple[str, str]]:
    """(page, command line) of every command of a program in code blocks, indented blocks and scripts."""
    found = []
    for page in PAGES:
        text = text_of(page)
        blocks = [block for language, block in FENCE.findall(text) if language in ("bash", "sh", "")]
        joined = "\n".join(blocks).replace("\\\n", " ")  # a command may go on in the next line
        for line in [*joined.splitlines(), *INDENTED.findall(text)]:
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if "&&" in words:
                words = words[: words.index("&&")]
            if words and words[0] == program:
                found.append((page.relative_to(ROOT).as_posix(), shlex.join(words)))
    return sorted(set(found))


HELP = [(f"{name} --help", line) for name, lines in EXAMPLES.items() for line, _ in lines]
WEAKSAM = shown_commands("weaksam") + HELP
MAKE = shown_commands("make")


def test_pages__show_commands() -> None:
    assert len(WEAKSAM) > 30
    assert len(MAKE) > 5
    assert {line.split()[1] for _, line in WEAKSAM} >= {
        *CHAIN,
        "demo",
        "evaluate",
        "inspect",
        "doctor",
        "weights",
    }


@pytest.mark.parametrize(("page", "line"), WEAKSAM)
def test_weaksam_command__parses_and_its_settings_are_valid(page: str, line: str) -> None:
    name, *rest = shlex.split(line)[1:]
    assert "..." not in rest, f"{page}: an elided command cannot be checked"
    app: Any = get_command(build_app([name]))
    assert name in app.commands, f"{page}: {line}"
    command = app.commands[name]
    while hasattr(command, "commands"):  # a group, such as weights
        subcommand, *rest = rest
        assert subcommand in command.commands, f"{page}: {line}"
        command = command.commands[subcommand]
    if "--help" in rest:
        return
    values = command.make_context(name, rest).params
    if name in CHAIN:
        assert values["recipe"] in (None, *recipe_names()), f"{page}: no recipe is called {values['recipe']}"
        model = config_class(name)
        flags = given_settings(model, values)
        resolve_settings(name, model, values["recipe"], None, values["assignments"], flags)


def make_targets() -> set[str]:
    named = re.findall(r"^([a-z][a-z -]*):(?!=)", text_of(ROOT / "Makefile"), re.MULTILINE)
    return {word for group in named for word in group.split()} | {*CHAIN, "evaluate", "report"}


@pytest.mark.parametrize(("page", "line"), MAKE)
def test_make_command__target_exists(page: str, line: str) -> None:
    targets = [w for w in shlex.split(line)[1:] if "=" not in w and not w.startswith("-")]
    assert targets
    assert set(targets) <= make_targets(), f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_page__relative_links_resolve(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", text_of(page))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        assert file.exists(), f"{page.name} links to {target}"
        assert file.is_relative_to(ROOT)
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(file), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_page__settings_named_exist(page: Path) -> None:
    for word in INLINE.findall(FENCE.sub("", text_of(page))):
        match = re.fullmatch(rf"({'|'.join(CHAIN)})\.([a-z_]+)(?:: .*|=.*)?", word)
        if match is None or match[2] in ("py", "h5", "json"):
            continue
        assert match[2] in config_class(match[1]).model_fields, f"{page.name}: {word}"


def cited_sections() -> list[tuple[str, str]]:
    """(file, section) of every section of docs/method.md that code cites."""
    found = []
    for source in sorted(
        [*ROOT.glob("stages/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("tests/*.py")]
    ):
        for group in re.findall(r"docs/method\.md,\s+sections? ([\d., to]*\d)", text_of(source)):
            found += [
                (source.relative_to(ROOT).as_posix(), number) for number in re.findall(r"[\d.]+", group)
            ]
    return found


def test_method__has_every_section_that_code_cites() -> None:
    headings = re.findall(r"^##+ ([\d.]+?)\.? ", text_of(ROOT / "docs" / "method.md"), re.MULTILINE)
    assert len(headings) == len(set(headings))
    cited = cited_sections()
    assert len(cited) > 15
    assert [(source, number) for source, number in cited if number not in headings] == []


def test_recipes__listed_in_docs_exist() -> None:
    table = re.findall(
        r"^\| `(\w+)` \|", text_of(ROOT / "docs" / "stages-and-settings.md").split("## cam")[0], re.MULTILINE
    )
    assert table
    assert set(table) <= set(recipe_names())


def test_dataset_yaml__shown_in_docs_is_valid() -> None:
    from stages.core.datasets.declared import DeclaredDataset

    text = text_of(ROOT / "docs" / "your-own-data.md")
    blocks = [block for language, block in FENCE.findall(text) if language == "yaml"]
    assert blocks
    for block in blocks:
        DeclaredDataset.model_validate(yaml.safe_load(block))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_slurm_script__is_sound_bash(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert script.stat().st_mode & 0o111, "executable"


def run_stage_script(
    folder: Path, exits: str, environment: dict[str, str], state: str = "RUNNING"
) -> subprocess.CompletedProcess[str]:
    """Run stage.sh with stand-ins for weaksam and scontrol that write down how they were called."""
    script = ROOT / "slurm" / environment["script"]
    for name, body in (
        ("weaksam", f'echo "$@" >> calls; exit {exits}'),
        (
            "scontrol",
            f'[ "$1" = show ] && printf " JobState={state} x\\n Command={script}\\n" || echo "scontrol $@" >> calls',
        ),
        ("srun", 'echo "srun $1" >> calls; shift; exec "$@"'),
    ):
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    path = {"PATH": f"{folder}:/usr/bin:/bin", "WEAKSAM_BIN": str(folder / "weaksam"), "SLURM_JOB_ID": "17"}
    command = ["bash", str(ROOT / "slurm" / environment.pop("script")), "prompt", "--split", "a_train"]
    return subprocess.run(
        command, cwd=folder, env=path | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("exits", "state", "code", "calls"),
    [
        ("0", "RUNNING", 0, ["prompt --split a_train --resume"]),
        ("75", "RUNNING", 0, ["prompt --split a_train --resume", "scontrol requeue 17"]),
        ("75", "COMPLETING", 75, ["prompt --split a_train --resume"]),  # scancel
        ("3", "RUNNING", 3, ["prompt --split a_train --resume"]),
    ],
)
def test_stage_script__requeues_on_75_unless_cancelled(
    tmp_path: Path, exits: str, state: str, code: int, calls: list[str]
) -> None:
    done = run_stage_script(tmp_path, exits, {"script": "stage.sh"}, state)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == calls


def test_stage_script__several_tasks_are_one_launch(tmp_path: Path) -> None:
    done = run_stage_script(tmp_path, "0", {"script": "stage.sh", "SLURM_NTASKS": "2"})
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["srun --kill-on-bad-exit=1", "prompt --split a_train --resume"]


def submit_chain(
    folder: Path, refuse: str, *splits: str
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Run chain.sh with a stand-in for sbatch, and one for weaksam whose dry run of one stage exits with 2."""
    (folder / "sbatch").write_text('#!/bin/bash\necho "$@" >> calls; wc -l < calls\n')
    (folder / "weaksam").write_text(
        f'#!/bin/bash\n[ "$2" = "{refuse}" ] && echo "error: bad" >&2 && exit 2; [ "$2" = cam ] || exit 3\n'
    )
    (folder / "python").write_text(f'#!/bin/bash\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    for name in ("sbatch", "weaksam", "python"):
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin", "WEAKSAM_BIN": str(folder / "weaksam"), "SBATCH_FLAGS": "-p gpu",
    }  # fmt: skip
    command = ["bash", str(ROOT / "slurm" / "chain.sh"), *splits, "--device", "cuda"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return done, [shlex.split(line) for line in lines]


def test_chain_script__each_job_after_those_it_reads(tmp_path: Path) -> None:
    done, calls = submit_chain(tmp_path, "none", "a_train", "a_test")
    assert done.returncode == 0, done.stderr
    script = str(ROOT / "slurm" / "stage.sh")
    names = [call[1 + call.index("--kill-on-invalid-dep=yes")].removeprefix("--job-name=") for call in calls]
    assert names[:4] == ["cam-a_train", "cam-a_test", "prompt-a_train", "prompt-a_test"]
    assert len(names) == 13
    assert {name.partition("-")[0] for name in names} == set(CHAIN)
    waits = {
        name: word.removeprefix("--dependency=afterok:").split(":")
        for name, call in zip(names, calls, strict=True)
        for word in call
        if word.startswith("--dependency")
    }
    assert waits["prompt-a_train"] == ["1"]
    assert waits["wsod-a_test"] == [
        str(1 + names.index("propose-a_test")),
        str(1 + names.index("wsod-a_train")),
    ]
    assert set(names) - set(waits) == {"cam-a_train"}
    for name, call in zip(names, calls, strict=True):
        stage, _, split = name.partition("-")
        assert call[call.index(script) + 1 :] == [stage, "--split", split, "--device", "cuda"]


def test_chain_script__without_a_test_split(tmp_path: Path) -> None:
    done, calls = submit_chain(tmp_path, "none", "a_train")
    assert done.returncode == 0, done.stderr
    assert len(calls) == len(CHAIN)


def test_chain_script__settings_of_a_late_stage_stop_it_before_the_first(tmp_path: Path) -> None:
    done, calls = submit_chain(tmp_path, "retrain", "a_train", "a_test")
    assert done.returncode == 2
    assert "error: bad" in done.stderr
    assert calls == [], "nothing is submitted"


def test_array_script__an_array_that_does_not_say_how_many(tmp_path: Path) -> None:
    task = {"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "3", "SLURM_ARRAY_TASK_ID": "3"}
    task |= {"SLURM_ARRAY_TASK_COUNT": "1", "script": "array.sh"}
    done = run_stage_script(tmp_path, "0", dict(task))
    assert done.returncode == 2
    assert "WEAKSAM_SHARDS" in done.stderr
    done = run_stage_script(tmp_path, "0", task | {"WEAKSAM_SHARDS": "4"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == ["prompt --split a_train --shard 3/4 --resume"]


def test_array_script__shards_count_from_zero(tmp_path: Path) -> None:
    task = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "3", "SLURM_ARRAY_TASK_ID": "2"}
    done = run_stage_script(tmp_path, "0", {"script": "array.sh", "SLURM_ARRAY_TASK_COUNT": "4"} | task)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == ["prompt --split a_train --shard 2/4 --resume"]
