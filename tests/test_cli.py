"""The command line: help without heavy imports, flags made from settings, errors made into exit codes."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.config import config_class
from stages.core.datasets import catalog
from stages.core.registry import CHAIN, Step, chain_specs, chain_steps, load_stage, stage_spec
from stages.core.spec import Role
from weaksam_cli import main as entry
from weaksam_cli import state
from weaksam_cli.stage_command import stage_command
from weaksam_cli.state import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "cv2", "h5py", "timm", "pycocotools", "segment_anything", "pydantic")


def run(*arguments: str) -> int:
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as caught:
        entry.main(arguments)
    code = caught.value.code
    return code if isinstance(code, int) else 0 if code is None else 1


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
    words = " ".join(result.stdout.split())
    for name, field in config_class(stage).model_fields.items():
        assert f"--{name.replace('_', '-')}"[:40] in result.stdout
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"{field.default})" in words, f"the default of {name} is not shown"


@pytest.mark.parametrize("stage", CHAIN)
def test_stage_command__flags_do_not_collide(stage: str) -> None:
    flags: list[str] = []
    for parameter in inspect.signature(stage_command(stage)).parameters.values():
        for declared in parameter.default.param_decls:
            flags += declared.split("/")
    assert len(flags) == len(set(flags)), f"{stage}: two options of one name"


@pytest.mark.parametrize("stage", CHAIN)
def test_stages__keep_the_protocol(stage: str) -> None:
    spec = load_stage(stage).spec
    assert spec is stage_spec(stage)
    assert spec.name == stage
    assert spec.output_names("train")
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
            if needed.split == producer:
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
