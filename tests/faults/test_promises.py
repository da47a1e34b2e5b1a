"""What docs/security.md promises of data: no code of theirs runs, whatever file they come in."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages.core.config.sources import load_config_file
from stages.core.datasets.declared import read_declared
from stages.core.detectors.checkpoints import DetectorFile
from stages.core.errors import WeakSamError
from stages.core.segmenters.sam_checkpoints import read_published
from stages.core.weights.checkpoints import load_state
from stages.core.weights.table import weights_table


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (os.fspath(self.mark),)


@pytest.mark.parametrize("name", ["plain.pth", "zip.pth", "legacy.pth", "named.safetensors", "nonsense.pth"])
def test_weights__run_no_code(tmp_path: Path, name: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / name
    if name == "plain.pth":
        path.write_bytes(pickle.dumps({"a": Evil(mark)}, protocol=2))
    elif name == "nonsense.pth":
        path.write_bytes(b"\x80\x02" + b"(" * 100_000 + b".")
    else:
        torch.save({"a": Evil(mark)}, path, _use_new_zipfile_serialization=name != "legacy.pth")
    for read in (read_published, load_state, DetectorFile.open):
        with pytest.raises(WeakSamError) as caught:
            read(path)
        assert caught.value.exit_code == 3
    assert not mark.exists()


READERS: list[Callable[[Path], object]] = [
    load_config_file,
    lambda path: weights_table({"WEAKSAM_WEIGHTS": str(path)}),
    lambda path: read_declared("any", path.parent),
]


@pytest.mark.parametrize("read", READERS, ids=["settings", "weights", "dataset"])
def test_yaml__runs_no_code(tmp_path: Path, read: Callable[[Path], object]) -> None:
    mark, path = tmp_path / "mark", tmp_path / "dataset.yaml"
    path.write_text(f"cam: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(WeakSamError) as caught:
        read(path)
    assert caught.value.exit_code == 2
    assert not mark.exists()
