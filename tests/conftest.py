"""Every test has its own data root and no machine settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No WEAKSAM_* variable of the machine reaches a test, and nothing is written outside tmp_path."""
    import os

    for name in list(os.environ):
        if name.startswith("WEAKSAM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WEAKSAM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WEAKSAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def random_trunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random trunks: what the tests look at does not depend on pretraining."""
    from stages.core.backbones.timm_backbones import build_trunk

    def random_trunk(*arguments: Any, **options: Any) -> Any:
        return build_trunk(*arguments, **options | {"pretrained": False})

    monkeypatch.setattr("stages.core.detectors.two_stage.faster_rcnn.build_trunk", random_trunk)
    monkeypatch.setattr("stages.core.detectors.detr.build_trunk", random_trunk)
