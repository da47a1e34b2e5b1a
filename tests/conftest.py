"""Every test has its own data root and no machine settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def clean_logger() -> Iterator[None]:
    """What a command has set up on the package's logger ends with the test: its stream is the captured stderr."""
    logger = logging.getLogger("weaksam")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


@pytest.fixture
def random_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random backbones: what the tests look at does not depend on pretraining."""
    from stages.core.backbones.timm_backbones import build_backbone

    def random_backbone(*arguments: Any, **options: Any) -> Any:
        return build_backbone(*arguments, **options | {"pretrained": False})

    monkeypatch.setattr("stages.core.detectors.two_stage.faster_rcnn.build_backbone", random_backbone)
    monkeypatch.setattr("stages.core.detectors.detr.build_backbone", random_backbone)
