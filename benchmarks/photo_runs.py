"""The runs that the photo benchmark measures: maps and proposals once, then every trained stage for several seeds.

    python -m benchmarks.photo_runs --out runs/photos --train-limit 400 --test-limit 250 --seeds 0 1 2
    python -m benchmarks.photo_runs --out runs/photos-small --train-limit 240 --test-limit 120 --seeds 0 \
        --name no-folds --set wsod.evidence_folds=0

Run folders, made by the stages' own code and continued where they were interrupted:

* `<out>/proposals`: cam, prompt and propose of both splits, with the first seed; all variants share them
* `<out>/<name>/s<seed>`: wsod, pgt, retrain (and wsis) of one variant of the settings
* `<out>/bound/s<seed>`: the same detectors trained on true boxes, with the settings of `<name>`

Ends with the table of `benchmarks.photos`. Images are the first ones of each list, in the order of their ids.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import photos, supervised_bound
from stages.core.config import StageConfig, build_config, config_class, parse_assignments, recipe_layers
from stages.core.datasets.catalog import data_root
from stages.core.registry import load_stage
from stages.core.runtime.execute import execute
from stages.core.runtime.request import Request

SHARED = ("cam", "prompt", "propose")
TRAINED = ("wsod", "pgt", "retrain", "wsis")


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes:
        out: Where the runs go.
        name: The variant's folder under `out`.
        data: Folder of data sets.
        train: Split to train on.
        test: Split to measure on.
        limits: Images of the train and the test split; None takes all.
        seeds: Seeds of the trained stages; the first is that of maps and proposals, too.
        recipe: Base settings.
        assignments: `stage.key=value`, over the recipe.
        stages: Which of `TRAINED` to run.
        bound: Whether the supervised bound is trained, too.
        device: Torch device.
    """

    out: Path
    name: str
    data: Path
    train: str
    test: str
    limits: tuple[int | None, int | None]
    seeds: tuple[int, ...]
    recipe: str
    assignments: tuple[str, ...]
    stages: tuple[str, ...]
    bound: bool
    device: str

    @property
    def proposals(self) -> Path:
        """Run folder of maps and proposals."""
        return self.out / "proposals"

    def variant(self, seed: int) -> Path:
        """Run folder of the trained stages of one seed."""
        return self.out / self.name / f"s{seed}"

    def splits(self) -> tuple[tuple[str, int | None], ...]:
        """Both splits with their limits."""
        return tuple(zip((self.train, self.test), self.limits, strict=True))


def settings(options: Options, stage: str) -> StageConfig:
    """Settings of a stage: its defaults < the recipe < `--set`.

    Raises:
        ConfigError: an unknown or impossible setting, with the layer it came from.
    """
    layers = [(name, sections.get(stage, {})) for name, sections in recipe_layers(options.recipe)]
    layers.append(("--set", parse_assignments(options.assignments, stage)))
    return build_config(config_class(stage), layers)


def run_stage(options: Options, stage: str, run: Path, seed: int) -> None:
    """Run a stage on both splits, `pgt` on the train split alone; what has finished is not done again."""
    config = settings(options, stage)
    for split, limit in options.splits()[: 1 if stage == "pgt" else 2]:
        overrides = {}
        if stage == "wsod":
            overrides["proposals"] = options.proposals / "propose" / split / "proposals.h5"
        execute(
            load_stage(stage),
            config,
            Request(
                split=split,
                run=run,
                data=options.data,
                overrides=overrides,
                limit=limit,
                resume=True,
                overwrite=True,
                device=options.device,
                precision="auto",
                seed=seed,
                workers=None,
            ),
        )


def run_bound(options: Options, seed: int) -> Path:
    """Train the detectors of a variant on true boxes, apply them to the test split, and return the run folder."""
    out = options.out / "bound" / f"s{seed}"
    supervised_bound.compare(
        supervised_bound.Options(
            run=options.variant(seed),
            out=out,
            data=options.data,
            train=options.train,
            test=options.test,
            stages=tuple(stage for stage in options.stages if stage in supervised_bound.SHOWN),
            device=options.device,
            seed=seed,
        )
    )
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    options, classes = parse(arguments)
    for stage in (*SHARED, *options.stages):  # a wrong setting is found before hours of work
        settings(options, stage)
    for stage in SHARED:
        run_stage(options, stage, options.proposals, options.seeds[0])
    bounds = []
    for seed in options.seeds:
        for stage in options.stages:
            run_stage(options, stage, options.variant(seed), seed)
        if options.bound:
            bounds.append(run_bound(options, seed))
    table = ["--runs", *(str(options.variant(seed)) for seed in options.seeds), "--data", str(options.data)]
    table += ["--proposals", str(options.proposals), "--train", options.train, "--test", options.test]
    table += ["--classes", *classes] if classes else []
    table += ["--bounds", *map(str, bounds)] if bounds else []
    photos.main([*table, "--json", str(options.out / f"{options.name}.json")])


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, list[str]]:
    """Read the command line: the options, and the classes to show."""
    parser = argparse.ArgumentParser(description="the runs of the photo benchmark")
    parser.add_argument("--out", type=Path, default=Path("runs/photos"), help="where the runs go")
    parser.add_argument("--name", default="default", help="folder of this variant of the settings")
    parser.add_argument("--data", type=Path, help="folder of data sets; default $WEAKSAM_DATA, else ./data")
    parser.add_argument("--train", default="voc07_trainval", help="split to train on")
    parser.add_argument("--test", default="voc07_test", help="split to measure on")
    parser.add_argument("--train-limit", type=int, help="first images of the train split; default all")
    parser.add_argument("--test-limit", type=int, help="first images of the test split; default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="offline", help="base settings")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="STAGE.KEY=VALUE")
    parser.add_argument("--stages", nargs="+", choices=TRAINED, default=["wsod", "pgt", "retrain"])
    parser.add_argument("--no-bound", action="store_true", help="do not train the supervised bound")
    parser.add_argument("--classes", nargs="*", default=[], help="classes to show; default all")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    given = parser.parse_args(arguments)
    options = Options(
        out=given.out,
        name=given.name,
        data=data_root(given.data),
        train=given.train,
        test=given.test,
        limits=(given.train_limit, given.test_limit),
        seeds=tuple(given.seeds),
        recipe=given.recipe,
        assignments=tuple(given.assignments),
        stages=tuple(stage for stage in TRAINED if stage in given.stages),
        bound=not given.no_bound,
        device=given.device,
    )
    return options, given.classes


if __name__ == "__main__":
    main()
