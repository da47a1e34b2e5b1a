"""The stages by name, in the order of the chain, and the steps in which a chain is run.

Packages of stages are imported when they are asked for, by name: the shared library depends on none of them, and a
declaration costs no more than its few lines. ``python -m stages.core.registry`` prints the steps for Make.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, cast

from stages.core.spec import BOTH, Role, Stage, StageSpec

CHAIN = ("cam", "prompt", "propose", "wsod", "pgt", "retrain", "wsis")
"""Names of the stages of the method, each after those whose files it reads.

``predict`` is a stage as well: it applies what the chain has trained to images of no data set.
"""


def stage_spec(name: str) -> StageSpec:
    """Return the declaration of a stage; imports nothing but the standard library."""
    return cast(StageSpec, importlib.import_module(f"stages.{name}.spec").SPEC)


def chain_specs() -> tuple[StageSpec, ...]:
    """Return the declarations of all stages in the order of the chain."""
    return tuple(stage_spec(name) for name in CHAIN)


def load_stage(name: str) -> Stage[Any]:
    """Return a stage, ready to run; takes settings of :func:`stages.core.config.config_class`."""
    return cast("Stage[Any]", importlib.import_module(f"stages.{name}.stage").STAGE)


@dataclass(frozen=True)
class Step:
    """One stage on the train or on the test split of a data set."""

    stage: str
    role: Role

    def __str__(self) -> str:
        return f"{self.stage}/{self.role}"


def chain_steps() -> dict[Step, tuple[Step, ...]]:
    """Return every step of a chain, each after the steps whose files it reads, and those steps.

    A stage that writes nothing on a test split has no step there.
    """
    steps: dict[Step, tuple[Step, ...]] = {}
    for spec in chain_specs():
        for role in BOTH:
            if spec.output_names(role):
                steps[Step(spec.name, role)] = tuple(
                    Step(needed.producer, "train" if needed.split == "train" else role)
                    for needed in spec.inputs
                    if role in needed.roles
                )
    return steps


def main() -> None:
    """Print the steps as words, ``step:needed,needed``."""
    words = (f"{step}:{','.join(map(str, needed))}" for step, needed in chain_steps().items())
    print(*words)  # noqa: T201 - its output is what Make reads


if __name__ == "__main__":
    main()
