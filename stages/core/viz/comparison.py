"""Two runs beside one another: what was set otherwise, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.core.artifacts.manifest import Manifest
from stages.core.viz.run_facts import RunFacts


@dataclass(frozen=True)
class Difference:
    """A metric or setting that both runs or one of them has.

    Attributes:
        stage: Stage and split, ``wsod on shapes_train``.
        name: Its name.
        mine, other: Its values in the two runs; None where a run has none.
        change: This run's value less the other's; None where they are no numbers.
    """

    stage: str
    name: str
    mine: Any
    other: Any
    change: float | None = None


@dataclass(frozen=True)
class Comparison:
    """This run against another.

    Attributes:
        other: Name of the other run.
        metrics: Headline metrics of stages that both have measured.
        settings: Settings, seeds and numbers of images that differ.
        seconds: Wall time of stages that both have finished.
    """

    other: str
    metrics: tuple[Difference, ...]
    settings: tuple[Difference, ...]
    seconds: tuple[Difference, ...]


def compare(run: RunFacts, other: RunFacts) -> Comparison:
    """Compare a run with another of the same splits."""
    mine, theirs = _manifests(run), _manifests(other)
    both = [key for key in mine if key in theirs]
    settings = [change for key in both for change in _settings(key, mine[key], theirs[key])]
    seconds = [_difference(key, "seconds", mine[key].wall_seconds, theirs[key].wall_seconds) for key in both]
    return Comparison(other.name, tuple(_metrics(run, other)), tuple(settings), tuple(seconds))


def _manifests(run: RunFacts) -> dict[str, Manifest]:
    return {f"{s.stage} on {s.split}": s.manifest for s in run.stages if s.manifest is not None}


def _metrics(run: RunFacts, other: RunFacts) -> Iterator[Difference]:
    mine, theirs = _measured(run), _measured(other)
    for (stage, name), value in mine.items():
        if (stage, name) in theirs:
            yield _difference(stage, name, value, theirs[stage, name])


def _measured(run: RunFacts) -> dict[tuple[str, str], float]:
    """(stage on split, metric) -> value; the artifacts of one stage differ in the names of their metrics."""
    rows = (run.figures or {}).get("rows", [])
    return {
        (f"{row['stage']} on {row['split']}", name): value
        for row in rows
        for name, value in row["metrics"].items()
        if value is not None
    }


def _settings(key: str, mine: Manifest, theirs: Manifest) -> Iterator[Difference]:
    own = {**dict(_flat(mine.config)), "seed": mine.seed, "limit": mine.limit, "version": mine.version}
    others = {
        **dict(_flat(theirs.config)),
        "seed": theirs.seed,
        "limit": theirs.limit,
        "version": theirs.version,
    }
    for name in {**own, **others}:
        if own.get(name) != others.get(name):
            yield Difference(key, name, own.get(name), others.get(name))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _difference(stage: str, name: str, mine: float, other: float) -> Difference:
    return Difference(stage, name, mine, other, mine - other)
