"""Training curves of a run for TensorBoard: every quantity of every ``metrics.jsonl`` as a scalar over steps.

Reads what the stages write anyway, so that it works on finished runs, on runs of other machines, and while a stage
trains. Needs the extra ``log``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.errors import EnvironmentFault, MissingInputError
from stages.core.registry import CHAIN
from stages.core.viz.run_facts import read_curves

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
Newest = dict[tuple[str, str], int]
"""Step of the last point written, by the folder of events and the name of the curve."""


class CurveWriter:
    """Writes the curves of a run as events, each point once.

    Args:
        run: Run folder.
        out: Folder of events; one folder per stage and split is made in it.

    Raises:
        EnvironmentFault: TensorBoard is not installed.
        MissingInputError: no such run.
    """

    def __init__(self, run: Path, out: Path) -> None:
        if not run.is_dir():
            raise MissingInputError("no such run folder", where=run)
        self.run, self.out = run, out
        self._writer_class = _summary_writer()
        self._newest: Newest = {}

    def write_new(self) -> int:
        """Write the points that came since the last call; return their number."""
        written = 0
        for stage in CHAIN:
            for path in sorted((self.run / stage).glob(f"*/{METRICS}")):
                written += self._write(f"{stage}/{path.parent.name}", read_curves(path))
        return written

    def _write(self, folder: str, phases: Mapping[str, Mapping[str, list[tuple[int, float]]]]) -> int:
        new = [
            (f"{phase}/{quantity}", step, value)
            for phase, quantities in phases.items()
            for quantity, points in quantities.items()
            for step, value in points
            if step > self._newest.get((folder, f"{phase}/{quantity}"), -1)
        ]
        if not new:
            return 0
        with self._writer_class(str(self.out / folder)) as writer:
            for name, step, value in new:
                writer.add_scalar(name, value, step)
                self._newest[folder, name] = step
        return len(new)


def _summary_writer() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise EnvironmentFault(
            "TensorBoard is not installed", hint='install it: pip install "weaksam[log]"'
        ) from error
    return SummaryWriter
