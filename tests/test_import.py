"""Files of the release: what they become, and that pickles cannot run anything."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.artifacts.coco_json import read_dataset, read_results
from stages.core.artifacts.exchange.plain_pickle import load_plain_pickle
from stages.core.artifacts.schemas import PROPOSALS, rows_to_boxes
from stages.core.artifacts.table import read_table
from stages.core.datasets.catalog import open_split
from stages.core.errors import SchemaError
from stages.wsod.config import WsodConfig
from stages.wsod.proposals import ProposalSource
from tests.command_builder import weaksam
from tests.datasets_builders import SCENES, make_voc


def data(tmp_path: Path) -> Path:
    """VOC names: 2008_000002, 2008_000007 and 2008_000009 train."""
    names = dict(zip(SCENES["train"], ("2008_000002", "2008_000007", "2008_000009"), strict=True))
    make_voc(tmp_path, "voc12", {"train": {names[key]: objects for key, objects in SCENES["train"].items()}})
    return tmp_path


def given(tmp_path: Path, content: Any, name: str = "file.pkl") -> tuple[object, ...]:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(content) if name.endswith("pkl") else json.dumps(content).encode())
    return ("import", path, "--split", "voc12_train", "--data", data(tmp_path), "--out", tmp_path / "out")


BOXES = np.array([[2, 3, 20, 25], [0, 0, 47, 31]])


@pytest.mark.parametrize("form", ["list", "dict"])
def test_import__proposals_become_half_open(tmp_path: Path, form: str) -> None:
    arrays = [BOXES.astype(np.uint16), np.zeros((0, 4)), np.c_[BOXES, [0.5, 0.25]].astype(np.float32)]
    content: Any = arrays
    if form == "dict":
        numbers = [2008000002, 2008000007, 2008000009]
        content = {
            "boxes": arrays[::-1],
            "indexes": numbers[::-1],
            "scores": [np.ones(len(a)) for a in arrays],
        }
    words = given(tmp_path, content)
    assert weaksam(*words) == 0
    table = read_table(tmp_path / "out" / "proposals.h5", PROPOSALS)
    assert table.ids == ("2008_000002", "2008_000007", "2008_000009")
    for name in ("2008_000002", "2008_000009"):
        assert rows_to_boxes(table.rows(name)).tolist() == [[2, 3, 21, 26], [0, 0, 48, 32]]
    source = ProposalSource(tmp_path / "out" / "proposals.h5", WsodConfig())
    assert source.boxes("2008_000002").tolist() == [[2, 3, 21, 26], [0, 0, 48, 32]]
    assert len(source.boxes("2008_000007")) == 0
    assert weaksam(*words) == 4
    assert weaksam(*words, "--overwrite", "--half-open") == 0
    assert (
        ProposalSource(tmp_path / "out" / "proposals.h5", WsodConfig()).boxes("2008_000002").tolist()
        == BOXES.tolist()
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([BOXES, BOXES], "proposals of 2 images, split voc12_train has 3"),
        ({"boxes": [BOXES], "indexes": [7]}, "names image 7, which is not in split"),
        ([BOXES, BOXES[:, :3], BOXES], r"shape \(2, 3\)"),
        ([BOXES, BOXES, BOXES[:, [2, 3, 0, 1]]], "2008_000009 is no box"),
        (7, "expected a list of arrays"),
    ],
)
def test_import__wrong_proposals(
    tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weaksam(*given(tmp_path, content)) == 3
    import re

    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trap-was-run"),))


@pytest.mark.parametrize("content", [Trap(), [BOXES, Trap()], {"boxes": [Trap()]}])
def test_load_plain_pickle__runs_nothing(
    tmp_path: Path, content: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(SchemaError, match="not a pickle of plain data"):
        load_plain_pickle(tmp_path / "file.pkl")
    assert not (tmp_path / "trap-was-run").exists()


def test_load_plain_pickle__plain_data_of_any_protocol(tmp_path: Path) -> None:
    content = {"boxes": [BOXES, np.zeros((0, 4), np.float32)], "name": "x", "scores": [np.float64(0.5)]}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "file.pkl").write_bytes(pickle.dumps(content, protocol))
        found = load_plain_pickle(tmp_path / "file.pkl")
        assert found["boxes"][0].tolist() == BOXES.tolist()
        assert found["scores"] == [0.5]
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(content)[:-9])
    with pytest.raises(SchemaError, match="not a pickle"):
        load_plain_pickle(tmp_path / "file.pkl")


def test_import__mist_detections_and_voc_pseudo_boxes(tmp_path: Path) -> None:
    entry = {"image_id": "2008_000007", "category_id": 8, "bbox": [2, 3, 19, 23], "score": 0.5}
    assert weaksam(*given(tmp_path, [entry], "bbox.json")) == 0
    split = open_split("voc12_train", tmp_path)
    found = read_results(tmp_path / "out" / "detections.json", split)["2008_000007"]
    assert (found.boxes_xyxy.tolist(), found.classes.tolist()) == ([[2, 3, 21, 26]], [7])
    boxes = {
        "2008000009": [{"image_id": 2008000009, "category_id": 7, "bbox": [2, 3, 21, 26], "score": 0.25}]
    }
    assert weaksam(*given(tmp_path, boxes, "pgt_voc.json")) == 0
    pgt = read_dataset(tmp_path / "out" / "pgt.json", split).boxes
    assert (pgt["2008_000009"].boxes_xyxy.tolist(), pgt["2008_000009"].classes.tolist()) == (
        [[2, 3, 21, 26]],
        [7],
    )
    wrong = [entry | {"category_id": 21}]
    assert weaksam(*given(tmp_path, wrong, "bbox.json"), "--overwrite") == 3


def test_export__forms_of_the_release_come_back_as_they_were(tmp_path: Path) -> None:
    entry = {"image_id": "2008_000007", "category_id": 8, "bbox": [2.0, 3.0, 19.0, 23.0], "score": 0.5}
    boxes = {
        "2008000009": [
            {"image_id": 2008000009, "category_id": 7, "bbox": [2.0, 3.0, 21.0, 26.0], "score": 0.25}
        ]
    }
    arrays = [BOXES.astype(np.float32), np.zeros((0, 4), np.float32), BOXES[:1].astype(np.float32)]
    forms = {
        "file.pkl": (arrays, "proposals.h5", "proposals.pkl"),
        "bbox.json": ([entry], "detections.json", "bbox.json"),
        "voc.json": (boxes, "pgt.json", "pseudo_boxes.json"),
    }
    for name, (content, artifact, released) in forms.items():
        assert weaksam(*given(tmp_path, content, name)) == 0
        words = ("--split", "voc12_train", "--data", tmp_path, "--format", "release", "--overwrite")
        assert weaksam("export", tmp_path / "out" / artifact, *words, "--out", tmp_path / "back") == 0
        path = tmp_path / "back" / released
        found = load_plain_pickle(path) if name == "file.pkl" else json.loads(path.read_text())
        if name != "file.pkl":
            assert found == content
            continue
        assert found["indexes"] == [2008000002, 2008000007, 2008000009]
        assert [own.tolist() for own in found["boxes"]] == [own.tolist() for own in arrays]
