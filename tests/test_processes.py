"""Several processes: what a launcher's environment means, and the same training whether one process does it or two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.artifacts.coco_json import write_dataset
from stages.core.artifacts.evidence import ProposalEvidence, evidence_pools
from stages.core.artifacts.schemas import PROPOSALS
from stages.core.artifacts.table import ImageRows, gather, write_table
from stages.core.backbones.timm_backbones import build_backbone
from stages.core.datasets.catalog import open_split
from stages.core.datasets.images import image_size
from stages.core.datasets.shapes import dataset as shapes
from stages.core.datasets.shapes.dataset import write_shapes
from stages.core.detectors import detr
from stages.core.detectors.two_stage import faster_rcnn
from stages.core.errors import EnvironmentFault
from stages.core.runtime import device, processes
from stages.core.runtime.processes import Launch, first_host, launch_facts
from stages.core.structures.detections import Detections
from stages.core.structures.rle import encode_masks
from stages.core.weights.checkpoints import load_state
from tests import processes_worker
from tests.processes_worker import EPOCHS, STAGES, run_all

IMAGES = 16
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node7", "node7"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("a1,a2", "a1"),
        ("rack-2-gpu[12]", "rack-2-gpu12"),
        ("localhost", "localhost"),
    ],
)
def test_first_host__node_lists(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, Launch()),
        # In a batch script, without srun: one process, however many tasks were granted.
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Launch()),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            Launch(3, 4, 1),
        ),
        (
            {
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_PROCID": "2",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_NODELIST": "gpu[03-04]",
                "SLURM_JOB_ID": "17",
                "SLURM_STEP_ID": "1",
            },
            Launch(2, 4, 0, "gpu03", 20_018),
        ),
    ],
)
def test_launch_facts__torchrun_and_srun(environment: dict[str, str], launch: Launch) -> None:
    assert launch_facts(environment) == launch


@pytest.mark.parametrize(("rank", "world"), [("one", "2"), ("", "2"), ("0", "x"), ("2", "2"), ("-1", "2")])
def test_launch_facts__stray_variables(rank: str, world: str) -> None:
    with pytest.raises(EnvironmentFault, match="launcher") as caught:
        launch_facts({"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": "0"})
    assert "unset these variables" in str(caught.value)


def test_join__alone_with_the_variables_of_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_PORT": str(free_port()),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "JOIN_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(EnvironmentFault, match="process 0 of 2 cannot join") as caught:
        processes.join("cpu")
    assert "unset RANK" in str(caught.value)


def test_join__port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(processes, "JOIN_TIMEOUT", timedelta(seconds=1))
        with pytest.raises(EnvironmentFault, match="MASTER_PORT"):
            processes.join("cpu")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("environment", "gpus", "own"),
    [
        ({}, 4, 0),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, 4, 1),
        # SLURM shows each task the one GPU it bound to it ...
        (
            {
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_PROCID": "1",
                "SLURM_LOCALID": "1",
                "CUDA_VISIBLE_DEVICES": "3",
            },
            1,
            0,
        ),
        # ... or all of the node. One GPU for two processes of torchrun is one too few: number 1 does not exist.
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, 2, 1),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "0"}, 1, 1),
    ],
)
def test_own_gpu__one_per_process(
    environment: dict[str, str], gpus: int, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "CUDA_VISIBLE_DEVICES",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert device._own_gpu(gpus) == own


def write_inputs(root: Path) -> None:
    """A few drawn images, random proposals, and pseudo boxes with masks that fill them."""
    write_shapes(root, {"train": IMAGES, "val": 1, "test": 1})
    split = open_split("shapes_train", root)
    rows, ground_truth, sizes = {}, {}, {}
    for number, image_id in enumerate(split.ids):
        rng = np.random.default_rng(number)
        height, width = sizes[image_id] = image_size(split.image_path(image_id))
        low = rng.uniform(0, min(height, width) / 2, (9, 2))
        boxes = np.concatenate([low, low + rng.uniform(20, min(height, width) / 2, (9, 2))], axis=1)
        boxes = boxes.astype(np.int64).astype(np.float32)
        columns = {name: boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
        names = ("source", "class_index", "peak_score", "predicted_iou", "stability", "mask_index")
        columns |= dict.fromkeys(names, np.ones(9))
        empty = [np.zeros(0, np.uint8)] * 9
        pools = {"rle": empty} | evidence_pools(ProposalEvidence.empty(9))
        rows[image_id] = ImageRows(columns, {"image_h": height, "image_w": width}, pools)
        some = boxes[: 1 + number % 3]
        masks = np.zeros((len(some), height, width), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, some.astype(int), strict=True):
            mask[y1:y2, x1:x2] = True
        classes = np.full(len(some), split.tags(image_id)[0], np.int64)
        ground_truth[image_id] = Detections(
            some, classes, np.ones(len(some), np.float32), encode_masks(masks)
        )
    write_table(root / "proposals.h5", PROPOSALS, gather(PROPOSALS, rows))
    write_dataset(root / "pgt.json", split, ground_truth, sizes)


def curve(folder: Path, stage: str) -> list[dict[str, Any]]:
    lines = json.loads((folder / f"{stage}.json").read_text())
    return [line for line in lines if "loss" in line]


def start_two(module: str, *arguments: Path) -> subprocess.Popen[str]:
    """Two processes under torchrun."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        "-m",
        module,
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_two_processes__faults_of_one_reach_both(tmp_path: Path) -> None:
    two = start_two("tests.processes_faults", tmp_path)
    _, errors = two.communicate(timeout=120)
    assert two.returncode == 0, errors[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for seen in (first, second):
        assert seen["diverged"][0] == "TrainingDivergedError"
        assert "'c'" in seen["diverged"][1], "the image is named in both, whichever had it"
        assert seen["stopped"][0] == "PreemptedError"
        assert seen["refused"] == ["InputError", "no such thing"]
        assert seen["gathered"] == [0, 1]
        assert seen["normalized"]
        assert seen["dropped"]
    assert first["diverged"] == second["diverged"]
    assert load_state(tmp_path / "stopped" / "state" / "train.pt")["done"] == 3
    assert (tmp_path / "diverged" / "state" / "train.pt").is_file()


def test_fit__two_processes_give_the_losses_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "ensure_shapes", lambda root: root / "shapes")
    for module in (faster_rcnn, detr):
        monkeypatch.setattr(module, "build_backbone", build_backbone)  # put back what the worker patches
    data = tmp_path / "data"
    write_inputs(data)
    two = start_two("tests.processes_worker", data, tmp_path / "two")
    processes_worker.patch()
    run_all(data, tmp_path / "one", {"proposals": data / "proposals.h5", "pgt": data / "pgt.json"})
    _, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors[-3000:]
    for stage in STAGES:
        alone, together = curve(tmp_path / "one", stage), curve(tmp_path / "two", stage)
        assert len(alone) == len(together) == EPOCHS * IMAGES // 4 == 20
        for mine, theirs in zip(alone, together, strict=True):
            assert mine.keys() == theirs.keys()
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5), (stage, mine["step"])
        assert len({line["loss"] for line in alone}) == 20, "the losses move"
    for stage, files in (("wsod", ("detections.json",)), ("wsis", ("segmentations.json", "pgt_masks.json"))):
        for name in files:
            assert (tmp_path / "two" / stage / name).is_file()
