"""The ablation of the method's second half, from proposals to a retrained detector, in one table.

WSDDN, OICR, MIST and MIST with Concrete DropBlock; pseudo ground truth by top-1 and by both adaptive rules; Faster
R-CNN (and with `--detr` a DETR) retrained on each, without and with RoI drop, and on the true boxes; thresholds swept.
Works on the proposals of a finished run and with its settings, unless `--recipe` or `--set` changes them:

    make ablation DATASET=shapes SEEDS='0 1 2'
    python -m benchmarks.ablation --run runs/shapes --dataset shapes --out runs/ablation-shapes --seeds 0 1 2
    python -m benchmarks.ablation --only wsod,pgt --limit 8 --seeds 0     # smoke

Every row and seed is a normal run folder, `<out>/<row>/s<seed>/`: the same command continues where it was stopped and
repeats nothing that has finished. Writes `<out>/ablation.json`, `ablation.md` and a PNG per sweep. Metrics are means
over seeds ± the sample standard deviation; steps and fractions of the bound are paired by seed. Metrics are those of
the test split; sweeps, by which settings may be chosen, never use it.

The observation behind RoI drop, from the losses of every RoI of a row:

    python -m benchmarks.roi_drop_observation --run runs/ablation-shapes/faster-rcnn/improved/s0 --split shapes_train
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.ablation_rows import (
    PGT_ROWS,
    RULES,
    WSOD_ROWS,
    Line,
    Measured,
    Metrics,
    Row,
    markdown,
    retrain_rows,
    summarise,
)
from benchmarks.ablation_runs import OWN_TEACHER, TEACHERS, Bench, Options
from benchmarks.ablation_sweeps import Sweep, drop_grid, drop_sweep, pgt_sweeps, rule_of
from benchmarks.plots import new_figure
from stages.core.artifacts.files import write_json, write_text
from stages.core.datasets.catalog import data_root, list_splits, main_splits, open_split
from stages.core.detectors.detr import require_transformers
from stages.core.errors import (
    InterruptedRunError,
    MissingInputError,
    PreemptedError,
    UsageError,
    WeakSamError,
)
from stages.core.runtime.device import resolve_device
from stages.core.runtime.environment import environment_facts, git_state, package_version
from stages.retrain.config import RetrainConfig

PARTS = ("wsod", "pgt", "retrain", "sweeps")
DETECTORS = {
    "rt-detr": "RT-DETR",
    "deformable-detr": "Deformable DETR",
    "dino": "DINO",
    "faster-rcnn": "Faster R-CNN",
}


def rows_of(bench: Bench, parts: Sequence[str], patterns: Sequence[str], detr: str | None) -> list[Row]:
    """The rows of the table that were asked for, in its order.

    Raises:
        ConfigError: a recipe or setting that does not work.
        UsageError: no row's key matches the patterns.
    """
    rows: list[Row] = [*(WSOD_ROWS if "wsod" in parts else ()), *(PGT_ROWS if "pgt" in parts else ())]
    if "retrain" in parts:
        for recipe in dict.fromkeys((None, detr)):
            config = RetrainConfig.model_validate(bench.settings("retrain", None, recipe).model_dump())
            drop = "paper" if config.roi_drop == "off" else config.roi_drop
            if config.architecture != "faster-rcnn":
                require_transformers()
            if any(row.key.startswith(f"{config.architecture}/") for row in rows):
                continue  # the base settings are those of a DETR themselves
            # Both adaptive rules are compared with the first detector; the second shows whether the steps hold there.
            rules = RULES if recipe is None else {"top1", rule_of(bench)} & RULES.keys()
            rows += retrain_rows(config.architecture, DETECTORS[config.architecture], drop, recipe, rules)
    kept = [row for row in rows if any(fnmatch(row.key, pattern) for pattern in patterns)]
    if rows and not kept:
        known = ", ".join(row.key for row in rows)
        raise UsageError(f"no row matches {' '.join(patterns)}", where="--rows", hint=f"rows: {known}")
    return kept


def run_rows(
    rows: Sequence[Row], seeds: Sequence[int], metrics: Callable[[Row, int], Metrics]
) -> tuple[Measured, list[str]]:
    """Run and measure rows, seed by seed; one that fails is reported and leaves the others alone.

    Rows of one seed come before those of the next, so that a first complete table is there early.

    Returns:
        metrics by row and seed, and what failed.

    Raises:
        PreemptedError, InterruptedRunError: asked to stop; the state is saved.
    """
    measured: Measured = {}
    problems: list[str] = []
    for number, (seed, row) in enumerate((seed, row) for seed in seeds for row in rows):
        print(f"[{number + 1}/{len(rows) * len(seeds)}] {row.key}, seed {seed}", file=sys.stderr, flush=True)
        try:
            measured.setdefault(row.key, {})[seed] = metrics(row, seed)
        except (PreemptedError, InterruptedRunError):
            raise
        except WeakSamError as error:
            problems.append(f"{row.key}, seed {seed}: {error}")
            print(f"failed: {problems[-1]}", file=sys.stderr, flush=True)
    return measured, problems


def run_table(bench: Bench, rows: Sequence[Row]) -> tuple[Measured, list[str]]:
    """All rows of the table; pseudo boxes alone once per teacher, everything else once per seed."""
    plain = [row for row in rows if set(row.changes) == {"pgt"}]
    trained = [row for row in rows if row not in plain]
    measured, problems = run_rows(trained, bench.options.seeds, bench.metrics)
    boxes, more = run_rows(plain, bench.teacher_seeds(), bench.metrics)
    return measured | boxes, problems + more


def sweep_rows(bench: Bench) -> dict[str, Row]:
    """The trainings of the sweep of RoI drop, by key.

    Raises:
        UsageError: there is no validation split to measure them on.
    """
    if bench.options.val is None:
        raise UsageError(
            "the thresholds of RoI drop are swept on a validation split, and none is known",
            where="--sweep-drop",
            hint="name one with --val; the test split is not for choosing settings",
        )
    base = RetrainConfig.model_validate(bench.settings("retrain").model_dump())
    return {row.key: row for steps in drop_grid(base, rule_of(bench)).values() for _, row in steps}


def run_drop_sweep(bench: Bench, seeds: Sequence[int]) -> tuple[Sweep, list[str]]:
    """Train every point with the seeds and measure it on the validation split; returns what failed, too."""
    val = bench.options.val
    assert val is not None

    def on_val(row: Row, seed: int) -> Metrics:
        bench.pgt(row, seed)
        folder = bench.retrain(row, seed, (bench.options.train, val))
        return bench.split_metrics(folder / "retrain" / val / "detections.json", val)

    measured, problems = run_rows(list(sweep_rows(bench).values()), seeds, on_val)
    return drop_sweep(bench, measured), problems


def check_val(options: Options, *, given: bool) -> Options:
    """The options with a validation split that shares no image with the others, or with none.

    Raises:
        UsageError: the one that was given shares images.
    """
    if options.val is None:
        return options
    val = _images(options.val, options.data)
    for other in (options.train, options.test):
        shared = len(val & _images(other, options.data))
        if shared and given:
            raise UsageError(
                f"{options.val} shares {shared} images with {other}, so nothing can be chosen on it",
                where="--val",
                hint="name a split of other images",
            )
        if shared:
            return replace(options, val=None)
    return options


def _images(split_name: str, data: Path) -> set[Path]:
    split = open_split(split_name, data)
    return {split.image_path(image_id) for image_id in split.ids}


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, argparse.Namespace]:
    """Read the command line.

    Raises:
        WeakSamError: splits, parts or devices that do not exist.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="shapes", help="its train, test and val splits are used")
    parser.add_argument("--run", type=Path, help="run with proposals; default runs/<dataset>")
    parser.add_argument("--out", type=Path, help="folder of the experiments; default runs/ablation-<dataset>")
    parser.add_argument("--data", type=Path, help="folder of data sets; default $WEAKSAM_DATA, else ./data")
    parser.add_argument("--train", help="train split, if not the data set's own")
    parser.add_argument("--test", help="test split, if not the data set's own")
    parser.add_argument("--val", help="validation split, of other images than both; default <dataset>_val")
    parser.add_argument("--recipe", help="base settings; default those of the run")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", dest="assignments")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="wsod,pgt,retrain,sweeps", help="parts, separated by commas")
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help="e.g. 'faster-rcnn/*'")
    parser.add_argument("--teacher", choices=TEACHERS, default=OWN_TEACHER, help=TEACHER_HELP)
    parser.add_argument("--detr", nargs="?", const="detr", metavar="RECIPE", help="a DETR too; default detr")
    parser.add_argument("--sweep-drop", type=int, nargs="*", metavar="SEED", help=SWEEP_HELP)
    parser.add_argument("--limit", type=int, help="only the first N images of each split")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dry-run", action="store_true", help="list the rows and whether they have finished")
    given = parser.parse_args(arguments)
    given.parts = tuple(part.strip() for part in given.only.split(","))
    for part in given.parts:
        if part not in PARTS:
            raise UsageError(f"'{part}' is no part", where="--only", hint=f"parts: {', '.join(PARTS)}")
    data = data_root(given.data)
    train, test = main_splits(given.dataset, data)
    own_val = f"{given.dataset}_val"
    options = Options(
        run=given.run or Path("runs") / given.dataset,
        out=given.out or Path("runs") / f"ablation-{given.dataset}",
        data=data,
        train=given.train or train,
        test=given.test or test,
        val=given.val or (own_val if own_val in list_splits(data) else None),
        recipe=given.recipe,
        assignments=tuple(given.assignments),
        seeds=tuple(dict.fromkeys(given.seeds)),
        limit=given.limit,
        teacher=given.teacher,
        device=resolve_device(given.device),
    )
    if not options.test:
        raise MissingInputError(
            f"{given.dataset} has no test split", where="--test", hint="name a split with boxes"
        )
    return check_val(options, given=given.val is not None), given


TEACHER_HELP = (
    "whose detections become pseudo boxes: the run's (one for all seeds), or a row of wsod of equal seed"
)


SWEEP_HELP = "sweep tau_cls and tau_reg, a training per point and seed; default all seeds"


def ablate(options: Options, given: argparse.Namespace) -> list[str]:
    """Run what was asked for, write the files and print the tables.

    Returns:
        what failed.
    """
    bench = Bench(options)
    rows = rows_of(bench, given.parts, given.rows, given.detr)
    if given.dry_run:
        for row in rows:
            done = sum(bench.finished(row, seed) for seed in options.seeds)
            print(f"{row.key:28} {row.label:44} {done}/{len(options.seeds)} seeds")
        return []
    sweeping = "sweeps" in given.parts
    trained = list(sweep_rows(bench).values()) if sweeping and given.sweep_drop is not None else []
    for row in (*rows, *trained, *(PGT_ROWS if sweeping else ())):
        bench.check(row)
    if sweeping:
        new_figure()
    measured, problems = run_table(bench, rows)
    lines = summarise(rows, measured)
    sweeps: dict[str, Sweep] = {}
    write(bench, lines, sweeps, problems)
    if sweeping:
        sweeps |= {sweep.setting: sweep for sweep in pgt_sweeps(bench)}
    if trained:
        sweeps["drop"], more = run_drop_sweep(bench, tuple(dict.fromkeys(given.sweep_drop)) or options.seeds)
        problems += more
    print(write(bench, lines, sweeps, problems))
    return problems


def write(bench: Bench, lines: Sequence[Line], sweeps: Mapping[str, Sweep], problems: Sequence[str]) -> str:
    """Write `ablation.json`, `ablation.md` and the plots; return the text of the second."""
    options = bench.options
    images = " and ".join(f"{len(bench.labeled(s).split.ids)} of {s}" for s in (options.train, options.test))
    seeds = " ".join(map(str, options.seeds))
    text = f"Images: {images}; seeds {seeds}; teacher {options.teacher}; mean ± standard deviation.\n\n"
    text += markdown(lines, options.seeds) if lines else ""
    for name, sweep in sweeps.items():
        sweep.plot(options.out / f"{name}.png")
        text += f"\n{sweep.title}\n\n{sweep.markdown()}"
    text += "".join(f"\nfailed: {problem}\n" for problem in problems)
    result = {
        "train": options.train, "test": options.test, "val": options.val, "seeds": options.seeds,
        "limit": options.limit, "teacher": options.teacher, "recipe": options.recipe,
        "set": options.assignments, "version": package_version(), "git": git_state(),
        "environment": environment_facts(options.device), "rows": [line.as_json() for line in lines],
        "sweeps": {name: sweep.as_json() for name, sweep in sweeps.items()}, "failed": list(problems),
    }  # fmt: skip
    write_json(options.out / "ablation.json", result, indent=2)
    write_text(options.out / "ablation.md", text)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit codes are those of the stages; 6 if some experiments failed and the others are in the table."""
    try:
        problems = ablate(*parse(arguments))
    except WeakSamError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if problems:
        print(json.dumps({"failed": problems}), file=sys.stderr)
        sys.exit(6)


if __name__ == "__main__":
    main()
