"""What the global options say, for the commands that follow them on the line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass
class GlobalOptions:
    """``-v -q --debug --no-progress``."""

    verbosity: int = 0
    debug: bool = False
    progress: bool = True


OPTIONS = GlobalOptions()


def data_root(given: Path | None) -> Path:
    """Where data sets live: ``--data``, else ``$WEAKSAM_DATA``, else ``./data``."""
    from stages.core.datasets import catalog  # not needed for --help

    return catalog.data_root(given)


def run_folder(given: Path | None, dataset: str) -> Path:
    """Where a run lives: ``--run``, else ``$WEAKSAM_RUN``, else ``./runs/<dataset>``."""
    if given is not None:
        return given
    from_environment = os.environ.get("WEAKSAM_RUN")
    return Path(from_environment) if from_environment else Path("runs") / dataset
