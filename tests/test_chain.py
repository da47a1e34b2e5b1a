"""The seven stages end to end on a handful of drawn images, through the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from stages.core.artifacts.manifest import read_manifest
from stages.core.datasets.shapes.dataset import write_shapes
from stages.core.registry import CHAIN
from weaksam_cli import main as entry

pytestmark = pytest.mark.chain
COUNTS = {"train": 10, "val": 2, "test": 4}


def weaksam(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        entry.main(["--no-progress", *arguments])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny drawn set in the place of the embedded one, under a name of its own."""
    root = tmp_path_factory.mktemp("data")
    write_shapes(root, COUNTS, seed=5)
    (root / "shapes").rename(root / "tiny")
    return root


def demo(data: Path, run: Path, *more: str) -> int:
    size = ["--train-images", "10", "--test-images", "4", "--workers", "2", "--max-failures", "100%"]
    return weaksam(
        "demo", "--dataset", "tiny", "--data", str(data), "--run", str(run), "--recipe", "toy", *size, *more
    )


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "first"
    assert demo(data, run) == 0
    return run


def test_chain__every_stage_leaves_a_manifest(finished: Path) -> None:
    for stage in CHAIN:
        manifest = read_manifest(finished / stage / "tiny_train")
        assert manifest.counts["images"] == 10
        for name in manifest.outputs:
            assert (finished / stage / "tiny_train" / name).stat().st_size > 0
        if stage != "pgt":
            assert read_manifest(finished / stage / "tiny_test").counts["images"] == 4


def test_chain__report_and_figures(finished: Path) -> None:
    figures = json.loads((finished / "evaluation.json").read_text())
    assert {row["stage"] for row in figures["rows"]} == set(CHAIN)
    page = (finished / "report.html").read_text()
    assert "data:image/" in page
    assert 'src="http' not in page


@pytest.fixture(scope="module")
def blind(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images and tags with every box and mask of the ground truth removed from the disk."""
    root = tmp_path_factory.mktemp("blind")
    shutil.copytree(data / "tiny", root / "tiny")
    shutil.rmtree(root / "tiny" / "SegmentationObject")
    shutil.rmtree(root / "tiny" / "annotations")
    for path in (root / "tiny" / "Annotations").iterdir():
        path.write_text(re.sub(r"<bndbox>.*?</bndbox>", "", path.read_text(), flags=re.DOTALL))
    return root


def test_chain__same_bytes_again_without_any_box_or_mask_on_disk(
    finished: Path, blind: Path, tmp_path: Path
) -> None:
    """Equal artifacts up to pgt.json: determinism (one seed, other workers) and weak supervision at once."""
    for stage in CHAIN[:5]:
        common = [
            "--run",
            str(tmp_path / "again"),
            "--data",
            str(blind),
            "--recipe",
            "toy",
            "--workers",
            "1",
            "--max-failures",
            "100%",
        ]
        assert weaksam(stage, "--split", "tiny_train", "--limit", "10", *common) == 0
        first, second = finished / stage / "tiny_train", tmp_path / "again" / stage / "tiny_train"
        for name in read_manifest(first).outputs:
            assert (first / name).read_bytes() == (second / name).read_bytes(), f"{stage}/{name}"


def test_chain__second_run_does_nothing_and_a_changed_setting_redoes_what_follows(
    finished: Path, data: Path
) -> None:
    def started() -> dict[str, str]:
        return {s: read_manifest(finished / s / "tiny_train").started for s in CHAIN}

    before = started()
    assert demo(data, finished) == 0
    assert started() == before
    assert demo(data, finished, "--set", "pgt.mode=topk") == 0
    after = started()
    assert all(after[s] == before[s] for s in ("cam", "prompt", "propose", "wsod"))
    assert after["pgt"] > before["pgt"]
