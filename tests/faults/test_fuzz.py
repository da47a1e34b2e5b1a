"""Files from anywhere, at random: every reader gives a value or one of our errors, and nothing else.

Short here; `make fuzz` runs the same for as long as wanted (FUZZ_EXAMPLES).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.artifacts.coco_fields import box_xywh, mask_of, score_of
from stages.core.artifacts.coco_json import read_results
from stages.core.artifacts.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from stages.core.config.sources import load_config_file
from stages.core.datasets.declared import read_declared
from stages.core.errors import WeakSamError
from stages.core.structures.rle import decode_masks, encode_mask
from stages.core.weights.checkpoints import load_weights, save_weights
from stages.core.weights.table import weights_table
from tests.fake_split import FakeSplit, weak
from tests.faults.strategies import JSON_VALUES, WORDS, YAML_TEXTS, damaged
from weaksam_cli.inspection import describe

fuzz = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def accept(read: Callable[[], object], *codes: int) -> None:
    """Run a reader that may give a value, or one of our errors with one of these exit codes."""
    try:
        read()
    except WeakSamError as error:
        if error.exit_code not in codes:
            raise


@fuzz
@given(YAML_TEXTS)
def test_settings__any_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    (tmp_path / "dataset.yaml").write_bytes(text.replace("cam:", "subsets:").encode("utf-8", "surrogatepass"))
    for read in (
        lambda: load_config_file(path),
        lambda: weights_table({"WEAKSAM_WEIGHTS": str(path)}),
        lambda: read_declared("any", tmp_path),
    ):
        accept(read, 2, 3)


@fuzz
@given(JSON_VALUES)
def test_json__any_value(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "any.json"
    path.write_text(json.dumps(value))
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(value))
    for read in (
        lambda: read_results(path, weak(FakeSplit())),
        lambda: read_manifest(tmp_path),
        lambda: describe(path),
    ):
        accept(read, 3)


@fuzz
@given(st.dictionaries(st.sampled_from(["bbox", "score", "segmentation", "iscrowd"]), JSON_VALUES))
def test_coco_entry__any_fields(entry: dict[str, Any]) -> None:
    for read in (
        lambda: box_xywh(entry),
        lambda: score_of(entry),
        lambda: mask_of(entry.get("segmentation"), 5, 7),
    ):
        try:
            found = read()
        except ValueError:
            continue
        if isinstance(found, dict):
            decode_masks([found], 5, 7)


@fuzz
@given(st.data())
def test_manifest__damaged(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "a.txt").write_text("x")
    write_manifest(tmp_path, Manifest("cam", "a_train", {}, 0, "1", None, ["weaksam"], outputs={"a.txt": ""}))
    whole = (tmp_path / MANIFEST_NAME).read_bytes()
    (tmp_path / MANIFEST_NAME).write_bytes(data.draw(damaged(whole)))
    accept(lambda: read_manifest(tmp_path), 3)


@fuzz
@given(st.data())
def test_weights__damaged(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "w.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_weights(path, torch.nn.Linear(2, 3), {"classes": ["cat"]})
    (tmp_path / "d.safetensors").write_bytes(data.draw(damaged(path.read_bytes())))
    layer = torch.nn.Linear(2, 3)
    accept(lambda: load_weights(tmp_path / "d.safetensors", layer, {"classes": ["cat"]}), 3)
    assert all(bool(p.isfinite().all()) for p in layer.parameters())


@fuzz
@given(st.data())
def test_run_lengths__damaged(data: st.DataObject) -> None:
    mask = np.zeros((9, 11), np.uint8)
    mask[2:7, 3:9] = 1
    counts = data.draw(damaged(encode_mask(mask)["counts"].encode()) | WORDS.map(str.encode)).decode(
        "latin-1"
    )
    try:
        rle = mask_of({"size": [9, 11], "counts": counts}, 9, 11)
    except ValueError:
        return
    assert decode_masks([rle], 9, 11).shape == (1, 9, 11)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket", "missing", "long", "NUL", "circle"])
def test_read__paths_that_are_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.yaml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "long":
        path = tmp_path / ("x" * 5000 + ".yaml")
    elif kind == "NUL":
        path = tmp_path / "x\0.yaml"
    elif kind == "circle":
        path.symlink_to(path)
    with pytest.raises(WeakSamError) as caught:
        load_config_file(path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "text",
    [
        "cam: " + "[" * 100_000,
        "cam: " + "{a: " * 5_000 + "1" + "}" * 5_000,
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefghi", "bcdefghij", strict=True)
        ),
        "cam: &x\n  epochs: *x\n",
        "cam: {? [1, 2] : 3}\n",
        'cam: {backbone: "\\ud800"}\n',
    ],
)  # fmt: skip
def test_settings__bombs(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(WeakSamError) as caught:
        load_config_file(path)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 2000


def test_settings__too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("cam:\n" + "#" * 2**20 * 17)
    with pytest.raises(WeakSamError, match=r"has 17 MiB, more than 16[^$]*WEAKSAM_MAX_FILE_MIB=18"):
        load_config_file(path)
    monkeypatch.setenv("WEAKSAM_MAX_FILE_MIB", "18")
    assert load_config_file(path) == {"cam": {}}
