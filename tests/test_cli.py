"""The command line: help without heavy imports, flags made from settings, errors made into exit codes."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field
from typer.main import get_command

from stages.core.config import OnlyWith, Settings, StageConfig, config_class
from stages.core.config.model import setting_fields
from stages.core.config.renamed import RENAMED
from stages.core.config.values import range_words
from stages.core.datasets import catalog
from stages.core.registry import CHAIN, Step, chain_specs, chain_steps, load_stage, stage_spec
from stages.core.spec import Role
from tests.command_builder import run
from weaksam_cli import main as entry
from weaksam_cli import state
from weaksam_cli.help_page import kind
from weaksam_cli.options import option_names
from weaksam_cli.setting_flags import given_settings, main_parameters, other_parameters
from weaksam_cli.stage_command import stage_command
from weaksam_cli.state import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "cv2", "h5py", "timm", "pycocotools", "segment_anything", "pydantic")


def test_help__imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom weaksam_cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stderr.strip().splitlines()[-1] == "[]"
    assert all(stage in result.stdout for stage in CHAIN)


@pytest.mark.parametrize("stage", CHAIN)
def test_stage_help__needs_no_torch_and_names_every_setting(stage: str) -> None:
    program = (
        "import sys\nfrom weaksam_cli.main import main\n"
        f"try:\n    main(['{stage}', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'cv2', 'timm') if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": ""},
    )
    assert result.stderr.strip().splitlines()[-1] == "[]"
    words = " ".join(result.stdout.replace("│", " ").split())
    for name, field in setting_fields(config_class(stage)):
        *group, last = (part.replace("_", "-") for part in name)
        flag = "--" + ".".join([*group, f"[no-]{last}" if field.annotation is bool else last])
        assert f"{flag} " in words
        default = field.get_default(call_default_factory=True)
        if isinstance(default, int | float) and not isinstance(default, bool):
            limits = range_words(field.metadata).removeprefix("in ")
            assert f"{limits + '; ' if limits else ''}default: {default})" in words, name
    assert "Examples" in words
    assert "<" not in re.sub("<(dataset|subset|run|stage|split|out)>", "", words).replace("<=", ""), (
        "types in <>"
    )


@pytest.mark.parametrize("stage", CHAIN)
def test_stage_command__flags_do_not_collide(stage: str) -> None:
    flags: list[str] = []
    for parameter in inspect.signature(stage_command(stage)).parameters.values():
        for declared in parameter.default.param_decls:
            flags += declared.split("/")
    assert len(flags) == len(set(flags)), f"{stage}: two options of one name"


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["", "propose", "predict", "weights", "weights get", "evaluate"])
def test_help__fits_the_terminal_and_ends_with_examples(
    command: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(*command.split(), "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= columns
    titles = [line.strip("╭─╮ ") for line in lines if line.startswith("╭")]
    assert titles[-1] == "Examples"
    assert f"Usage: weaksam {command}".strip() in "\n".join(lines)


def test_stage_help__main_settings_come_before_the_run_and_the_groups() -> None:
    class ExampleConfig(StageConfig):
        main_settings: ClassVar[tuple[str, ...]] = ("detr.heads", "epochs")
        headings: ClassVar[Mapping[str, str]] = {"lr": "Rates"}
        epochs: int = Field(3, ge=1, description="Passes.")
        sizes: tuple[int, ...] = Field((1, 2), description="Sizes.")
        lr: float = Field(0.1, gt=0, le=1, description="Rate.")
        detr: Annotated[ExampleGroup, OnlyWith("sizes", ((1,),))] = ExampleGroup()

    assert [p.default.param_decls for p in main_parameters(ExampleConfig)] == [
        ("--detr.heads",),
        ("--epochs",),
    ]
    others = {p.default.param_decls[0]: p.default for p in other_parameters(ExampleConfig)}
    assert {flag: option.rich_help_panel for flag, option in others.items()} == {
        "--sizes": "Other settings",
        "--lr": "Rates",
        "--detr.masks/--detr.no-masks": "A transformer | only with sizes 1",
    }
    assert (others["--sizes"].metavar, others["--lr"].metavar) == ("INTEGER,...", "NUMBER")
    assert others["--lr"].help == "Rate. ((0, 1]; default: 0.1)"
    values = {"setting__detr__heads": "4", "setting__detr__masks": False, "setting__sizes": "480,576"}
    assert given_settings(ExampleConfig, values) == {
        "detr": {"heads": "4", "masks": False},
        "sizes": "480,576",
    }


@pytest.mark.parametrize("stage", CHAIN)
def test_main_settings__at_most_ten_and_headings_name_settings(stage: str) -> None:
    model = config_class(stage)
    names = [".".join(name) for name, _ in setting_fields(model)]
    assert 0 < len(model.main_settings) <= 10
    assert set(model.main_settings) <= set(names)
    assert set(model.headings) <= set(inspect.get_annotations(model))


class ExampleGroup(Settings):
    """A transformer."""

    heads: int = Field(8, description="Heads.")
    masks: bool = Field(True, description="Masks.")


def test_options__are_the_same_in_every_command_that_has_them() -> None:
    """One declaration: flags and types never differ, and variables only where a command says so."""
    app: Any = get_command(entry.build_app(CHAIN))
    expected = {p.name: p for p in app.commands["cam"].params}
    for command in app.commands.values():
        for parameter in getattr(command, "params", []):
            if parameter.name in option_names():
                assert parameter.opts == expected[parameter.name].opts
                assert parameter.envvar in (expected[parameter.name].envvar, None)
                assert kind(parameter) in (kind(expected[parameter.name]), "STAGE.KEY=VALUE")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("weaksam ca", {"cam"}),
        ("weaksam cam --split shapes_tr", {"shapes_train"}),
        ("weaksam cam --run runs/b", {"runs/best"}),
        ("weaksam cam --recipe vo", {"voc07", "voc12"}),
        ("weaksam cam --precision f", {"fp32", "fp16"}),
        ("weaksam pgt --mode p", {"paper", "pgf"}),
        ("weaksam pgt --set mode=i", {"mode=improved"}),
        ("weaksam demo --set pgt.mode=i", {"pgt.mode=improved"}),
        ("weaksam report --dataset sha", {"shapes"}),
        ("weaksam weights get sam-vit-h", {"sam-vit-h"}),
        ("weaksam propose --segmenter sam-n", {"sam-nano", "sam-nano-photo"}),
    ],
)
def test_completion__offers_names(
    words: str,
    expected: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs" / "best").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name, value in completion_request(words).items():
        monkeypatch.setenv(name, value)
    assert run() == 0
    assert set(capsys.readouterr().out.split()) == expected


def completion_request(words: str) -> dict[str, str]:
    """The variables by which bash asks what the last word may become."""
    number = str(len(words.split(" ")) - 1)
    return {"_WEAKSAM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number}


def test_completion__needs_no_torch() -> None:
    program = (
        "import sys\nfrom weaksam_cli.main import main\n"
        "try:\n    main([])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'cv2', 'timm', 'h5py') if m in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, **completion_request("weaksam propose --split shapes_te")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["shapes_test"]
    assert done.stderr.split("\n")[-2] == "[]"


def test_version__short_and_long(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-V") == run("--version") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.startswith("weaksam ")


def test_main__renamed_flag_says_its_new_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RENAMED, "pgt", {"rule": "mode"})
    assert run("pgt", "--split", "shapes_train", "--rule", "paper") == 2
    assert "'--rule': renamed to 'mode'" in capsys.readouterr().err


@pytest.mark.parametrize("stage", [*CHAIN, "predict"])
def test_stages__keep_the_protocol(stage: str) -> None:
    spec = load_stage(stage).spec
    assert spec is stage_spec(stage)
    assert spec.name == stage
    assert spec.output_names("test" if stage == "predict" else "train")
    if stage in CHAIN:
        flags = inspect.signature(stage_command(stage)).parameters
        assert {f"input_{needed.name}" for needed in spec.inputs} <= set(flags)
        assert callable(importlib.import_module(f"stages.{stage}.viz").draw)
    folder = Path(importlib.import_module(f"stages.{stage}").__path__[0])
    for name in ("config.py", "spec.py", "stage.py", "viz.py", "README.md"):
        assert (folder / name).is_file()
    for name, field in config_class(stage).model_fields.items():
        assert field.description, f"{stage}.{name} has no description"


@pytest.mark.parametrize("producer", ["own", "train"])
def test_stages__inputs_are_outputs_of_their_producers(producer: str) -> None:
    for spec in chain_specs():
        for needed in spec.inputs:
            if not needed.producer:
                assert needed.help, "a file that no stage writes says what it is"
                assert not needed.roles
            elif needed.split == producer:
                roles: tuple[Role, ...] = ("train",) if producer == "train" else needed.roles
                made = stage_spec(needed.producer)
                assert all(needed.file_name in made.output_names(role) for role in roles), (spec.name, needed)


def test_chain_steps__each_after_those_it_needs() -> None:
    steps = chain_steps()
    order = list(steps)
    assert order[0] == Step("cam", "train")
    assert Step("pgt", "test") not in steps
    assert len(steps) == 2 * len(CHAIN) - 1
    assert all(order.index(needed) < order.index(step) for step in steps for needed in steps[step])
    assert steps[Step("wsod", "test")] == (Step("propose", "test"), Step("wsod", "train"))


def test_registry__declarations_need_the_standard_library_alone() -> None:
    """Make reads them before anything is installed."""
    program = (
        "import sys; sys.path.insert(0, '.'); from stages.core.registry import main; main()\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'stages'}))"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    steps, others = done.stdout.splitlines()
    assert others == "['__main__']" or others == "[]"
    assert steps.split()[:2] == ["cam/train:", "cam/test:cam/train"]
    assert steps.split()[-1] == "wsis/test:wsis/train"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["cam"], 2, "--split"),  # a missing option
        (["camm"], 2, "camm"),  # an unknown command
        (["cam", "--split", "shapes_train", "--no-such-flag"], 2, "no-such-flag"),
        (["cam", "--split", "nothing_train"], 3, "nothing"),
        (["prompt", "--split", "shapes_train", "--set", "kernl=3"], 2, "kernl"),
        (["pgt", "--split", "shapes_train", "--recipe", "shapez"], 2, "did you mean 'shapes'"),
        (["cam", "--split", "shapes_train", "--device", "toaster"], 2, "toaster"),
        (["cam", "--split", "shapes_train", "--shard", "3/2"], 2, "shard"),
        (["cam", "--split", "shapes_train", "--config", "absent.yaml"], 3, "absent.yaml"),
        (["inspect", "absent.h5"], 3, "absent.h5"),
        (["evaluate"], 2, "--dataset"),
        (["evaluate", "x.json", "--task", "dets"], 2, "--task: expected cams, prompts"),
        (
            ["cam", "--split", "x_train", "--workers", "-1"],
            2,
            "--workers: expected an integer >= 0, got '-1'",
        ),
        (["cam", "--split", "x_train", "--precision=half"], 2, "fp32, bf16 or fp16, got 'half'"),
        (["predict", "a", "--score-thresh", "7"], 2, "expected a number in [0, 1], got '7'"),
        (
            ["cam", "--split", "shapes_train", "--epochs", "0"],
            2,
            "expected an integer in [1, 10000], got '0'",
        ),
    ],
)
def test_main__errors_become_exit_codes(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    captured = capsys.readouterr()
    assert captured.out == "", "results only on stdout"
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_main__a_bug_is_exit_1_with_a_short_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr("weaksam_cli.inspection.describe", broken)
    assert run("inspect", "x.h5") == 1
    assert "a bug in weaksam: RuntimeError: surprise" in capsys.readouterr().err


def test_main__cuda_absent_is_exit_5(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    index = torch.cuda.device_count() + 3
    assert run("cam", "--split", "shapes_train", "--device", f"cuda:{index}") == 5
    assert "CUDA" in capsys.readouterr().err


def test_inspect__manifest_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    from stages.core.artifacts.schemas import PROMPTS
    from stages.core.artifacts.table import ImageRows, gather, write_table

    columns = {name: np.zeros(2, dtype=dtype) for name, dtype in PROMPTS.columns.items()}
    rows = {"a": ImageRows(columns, {"image_h": 4, "image_w": 5})}
    write_table(tmp_path / "prompts.h5", PROMPTS, gather(PROMPTS, rows))
    assert run("inspect", str(tmp_path / "prompts.h5"), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["rows"]) == (1, 2)
    assert run("inspect", str(tmp_path / "prompts.h5"), "--image", "b") == 3


def test_quiet_and_verbose__set_the_level() -> None:
    run("-q", "inspect", "absent")
    assert OPTIONS.verbosity == -1
    run("-v", "inspect", "absent")
    assert OPTIONS.verbosity == 1


def test_no_arguments__help_without_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    shown = capsys.readouterr()
    assert "Stages, in order" in shown.out + shown.err
    assert "error" not in shown.err


def test_doctor__ready_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["problems"] == []
    assert "cpu" in facts["devices"]


def test_doctor__names_a_data_set_that_is_described_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "dataset.yaml").write_text("classes: {")
    monkeypatch.setenv("WEAKSAM_DATA", str(tmp_path))
    run("doctor", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert any("pets" in problem and "dataset.yaml" in problem for problem in facts["problems"])


@pytest.mark.parametrize("variable", [None, "", "elsewhere"])
def test_data_root__of_the_door_is_that_of_the_catalog(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEAKSAM_DATA")
    if variable is not None:
        monkeypatch.setenv("WEAKSAM_DATA", variable)
    assert state.data_root(None) == catalog.data_root() == Path(variable or "data")
    assert state.data_root(Path("given")) == Path("given")
