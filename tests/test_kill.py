"""A stage killed without warning in mid-training goes on to the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from stages.core.runtime.execute import execute
from stages.core.runtime.request import Request
from stages.wsod.config import WsodConfig
from stages.wsod.stage import STAGE
from tests.datasets_builders import SCENES, make_voc
from tests.wsod_builders import write_proposals

ROOT = Path(__file__).parents[1]
EPOCHS = 12  # of 3 images: 36 steps
SETTINGS = {
    "method": "mist", "dropblock": True, "dropblock_form": "two_step", "pretrained": False, "fused_channels": 8,
    "pooler_resolution": 2, "fc_dim": 8, "train_short_sides": (32, 40), "test_short_side": 32, "epochs": EPOCHS,
    "batch_size": 1,
    "num_threads": 1, "lr": 1e-3, "ema_decay": 0.9,
}  # fmt: skip


def as_text(value: object) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value).lower()


def wait_for_steps(process: subprocess.Popen[str], metrics: Path, steps: int) -> None:
    """Return once so many steps are logged; fail if the process ends before."""
    for _ in range(6000):
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= steps:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    raise AssertionError("the training did not get going")


def test_wsod__killed_in_mid_training_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_voc(data)
    proposals = write_proposals(tmp_path / "proposals.h5", dict.fromkeys(SCENES["train"], 7))
    whole = Request(
        split="tiny_train", run=tmp_path / "whole", data=data, overrides={"proposals": proposals}, save_every=0,
        log_every=1, show_progress=False,
    )  # fmt: skip
    killed = replace(whole, run=tmp_path / "killed")
    out = killed.run / "wsod" / "tiny_train"
    flags = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={as_text(value)}")]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "weaksam_cli", "wsod", "--split", "tiny_train", "--data", data, "--run", killed.run,
            "--proposals", proposals, "--save-every", "0", "--log-every", "1", "--device", "cpu", "--workers", "2",
            *flags,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    config = WsodConfig.model_validate(SETTINGS)
    wait_for_steps(process, out / "metrics.jsonl", 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = len((out / "metrics.jsonl").read_text().splitlines())
    assert 5 <= steps < 3 * EPOCHS, "killed in mid-training"
    assert not (out / "detector.safetensors").exists()
    finished = execute(STAGE, config, whole)  # the run that nobody disturbs
    resumed = execute(STAGE, config, replace(killed, resume=True))
    assert resumed.status == finished.status == "done"
    for name in ("detector.safetensors", "detections.json"):
        assert (out / name).read_bytes() == (finished.out / name).read_bytes(), name
