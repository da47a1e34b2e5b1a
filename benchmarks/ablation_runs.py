"""The experiments of the ablation: one normal run folder per row and seed, made by the stages' own code.

`<out>/<row>/s<seed>/<stage>/<split>` with manifest, settings and metrics like any run, so that `weaksam inspect`,
`report` and the other benchmarks read them; what has finished with the same settings and inputs is not done again, and
what was interrupted goes on. Ground truth is opened only to measure, and for the rows that are trained on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.ablation_rows import WSOD_ROWS, Metrics, Row
from benchmarks.supervised_bound import write_ground_truth
from stages.core.artifacts.coco_json import read_results, write_results
from stages.core.artifacts.manifest import MANIFEST_NAME, read_manifest
from stages.core.config import StageConfig, build_config, config_class, parse_assignments, recipe_layers
from stages.core.datasets.catalog import open_split
from stages.core.errors import MissingInputError
from stages.core.evaluation.corloc import corloc
from stages.core.evaluation.tasks import LabeledSplit, load_labeled_split, measure
from stages.core.registry import load_stage
from stages.core.runtime.execute import execute
from stages.core.runtime.request import Request

OWN_TEACHER = "run"
"""Teacher of the pseudo boxes: the detections of the finished run itself."""
TEACHERS = (OWN_TEACHER, *(row.key.removeprefix("wsod/") for row in WSOD_ROWS))


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes:
        run: Finished run with proposals of both splits and, for teacher `run`, detections of the train split.
        out: Where the experiments go.
        data: Folder of data sets.
        train: Split to train on.
        test: Split that metrics are given for.
        val: Split that sweeps with training are measured on; None if the data set has none.
        recipe: Base settings; None takes those of `run`.
        assignments: `stage.key=value`, over the base settings.
        seeds: Seeds of every row.
        limit: First images of every split; None takes all that `run` has.
        teacher: One of `TEACHERS`.
        device: Torch device.
    """

    run: Path
    out: Path
    data: Path
    train: str
    test: str
    val: str | None = None
    recipe: str | None = None
    assignments: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    limit: int | None = None
    teacher: str = OWN_TEACHER
    device: str = "cpu"


class Bench:
    """Runs rows and measures them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        # One copy of each ground truth and one writing of each file per process.
        self.labeled = cache(self._labeled)
        self.limit = cache(self._limit)
        self._ground_truth_file = cache(self._write_ground_truth)
        self._run_detections = cache(self._cut_detections)

    def folder(self, key: str, seed: int) -> Path:
        """Run folder of a row and seed."""
        return self.options.out / key / f"s{seed}"

    def settings(
        self, stage: str, changes: Mapping[str, Any] | None = None, recipe: str | None = None
    ) -> StageConfig:
        """Base settings < recipe of the row < `--set` < changes of the row.

        The base is the recipe that was asked for, else what the run used, else the defaults.

        Raises:
            ConfigError: an unknown or impossible setting, with the layer it came from.
        """
        layers: list[tuple[str, dict[str, Any]]] = []
        made = self.options.run / stage / self.options.train
        if self.options.recipe:
            layers += _recipe(self.options.recipe, stage)
        elif (made / MANIFEST_NAME).is_file():
            layers.append((str(made), dict(read_manifest(made).config)))
        if recipe:
            layers += _recipe(recipe, stage)
        layers.append(("--set", parse_assignments(self.options.assignments, stage)))
        layers.append(("the row", dict(changes or {})))
        return build_config(config_class(stage), layers)

    def check(self, row: Row) -> None:
        """Validate a row's settings and look for its inputs, before hours are spent on others.

        Raises:
            ConfigError, MissingInputError: what is wrong or missing.
        """
        for stage, changes in row.changes.items():
            self.settings(stage, changes, row.recipe)
        trained = self.options.teacher != OWN_TEACHER
        if "wsod" in row.changes or ("pgt" in row.changes and trained):
            splits = (
                (self.options.train, self.options.test) if "wsod" in row.changes else (self.options.train,)
            )
            for split in splits:
                _need(self.options.run / "propose" / split / "proposals.h5", "propose")
        elif "pgt" in row.changes:
            _need(self.options.run / "wsod" / self.options.train / "detections.json", "wsod")

    def finished(self, row: Row, seed: int) -> bool:
        """Whether every stage of a row has a manifest; the settings may have changed since."""
        folders = [
            self.folder(row.key, seed) / stage / split
            for stage in row.changes
            for split in (
                (self.options.train,) if stage == "pgt" else (self.options.train, self.options.test)
            )
        ]
        return all((folder / MANIFEST_NAME).is_file() for folder in folders)

    def metrics(self, row: Row, seed: int) -> Metrics:
        """Run a row with one seed, or find it finished, and measure it.

        Detectors: AP50 and COCO AP on the test split, CorLoc on the train split. Pseudo boxes: precision and recall
        at IoU .5 and boxes per image, on the train split.
        """
        both = (self.options.train, self.options.test)
        if "wsod" in row.changes:
            self.wsod(row, seed, both)
            return self.detector_metrics(self.folder(row.key, seed), "wsod")
        found: Metrics = {}
        if "pgt" in row.changes:
            report = measure("pgt", self.pgt(row, seed), self.labeled(self.options.train))
            found |= {name: report.metrics[name] for name in ("precision50", "recall50", "boxes_per_image")}
        if "retrain" in row.changes:
            self.retrain(row, seed, both)
            found |= self.detector_metrics(self.folder(row.key, seed), "retrain")
        return found

    def detector_metrics(self, folder: Path, stage: str) -> Metrics:
        """Metrics of a detector that was applied to both splits."""
        labeled = self.labeled(self.options.train)
        seen = read_results(folder / stage / self.options.train / "detections.json", labeled.split)
        found = self.split_metrics(folder / stage / self.options.test / "detections.json", self.options.test)
        known = {image_id: boxes for image_id, boxes in seen.items() if image_id in labeled.images}
        return found | {"corloc": corloc(known, labeled.images, len(labeled.split.classes)).mean}

    def split_metrics(self, detections: Path, split: str) -> Metrics:
        """AP50 and COCO AP of detections of a split."""
        metrics = measure("detections", detections, self.labeled(split)).metrics
        return {name: metrics[name] for name in ("ap50", "coco_ap")}

    def wsod(self, row: Row, seed: int, splits: Iterable[str]) -> Path:
        """Train a weakly supervised detector, apply it to the splits, and return the run folder."""
        config = self.settings("wsod", row.changes["wsod"], row.recipe)
        for split in splits:
            proposals = self.options.run / "propose" / split / "proposals.h5"
            self._execute("wsod", config, row.key, seed, split, {"proposals": proposals})
        return self.folder(row.key, seed)

    def pgt(self, row: Row, seed: int) -> Path:
        """Make a row's pseudo boxes out of the teacher's detections and return the file."""
        config = self.settings("pgt", row.changes["pgt"], row.recipe)
        detections = self.teacher(seed, self.options.train)
        self._execute("pgt", config, row.key, seed, self.options.train, {"detections": detections})
        return self.folder(row.key, seed) / "pgt" / self.options.train / "pgt.json"

    def retrain(self, row: Row, seed: int, splits: Iterable[str]) -> Path:
        """Train an ordinary detector on a row's boxes, apply it to the splits, and return the run folder."""
        config = self.settings("retrain", row.changes["retrain"], row.recipe)
        for split in splits:
            given = (
                {"pgt": self._ground_truth_file()} if row.ground_truth and split == self.options.train else {}
            )
            self._execute("retrain", config, row.key, seed, split, given)
        return self.folder(row.key, seed)

    def teacher(self, seed: int, split: str) -> Path:
        """Detections that pseudo boxes are made of: the run's, or those of a row of wsod with the same seed."""
        if self.options.teacher == OWN_TEACHER:
            return self._run_detections(split)
        row = next(row for row in WSOD_ROWS if row.key == f"wsod/{self.options.teacher}")
        splits = dict.fromkeys((self.options.train, split))
        return self.wsod(row, seed, splits) / "wsod" / split / "detections.json"

    def teacher_seeds(self) -> tuple[int, ...]:
        """Seeds that give different pseudo boxes: one, if the teacher is the run."""
        return self.options.seeds[:1] if self.options.teacher == OWN_TEACHER else self.options.seeds

    def knows(self, split: str) -> bool:
        """Whether the teacher was, or can be, applied to a split."""
        stage = "wsod" if self.options.teacher == OWN_TEACHER else "propose"
        return (self.options.run / stage / split / MANIFEST_NAME).is_file()

    def _execute(
        self, stage: str, config: StageConfig, key: str, seed: int, split: str, inputs: dict[str, Path]
    ) -> None:
        execute(
            load_stage(stage),
            config,
            Request(
                split=split,
                run=self.folder(key, seed),
                data=self.options.data,
                overrides=inputs,
                limit=self.limit(split),
                resume=True,
                overwrite=True,
                device=self.options.device,
                precision="auto",
                seed=seed,
                workers=None,
                # Images without a usable proposal are a metric here, not a failure.
                max_failures="100%",
            ),
        )

    def _limit(self, split: str) -> int | None:
        """Images of a split: what was asked for, but no more than the run has."""
        folders = [self.options.run / stage / split for stage in ("propose", "wsod")]
        made = [read_manifest(folder).limit for folder in folders if (folder / MANIFEST_NAME).is_file()]
        return min((n for n in (self.options.limit, *made) if n is not None), default=None)

    def _labeled(self, split: str) -> LabeledSplit:
        return load_labeled_split(split, self.options.data, self.limit(split))

    def _write_ground_truth(self) -> Path:
        train = self.options.train
        return write_ground_truth(
            train, self.options.data, self.options.out / "ground_truth" / "pgt.json", self.limit(train)
        )

    def _cut_detections(self, split: str) -> Path:
        """The run's detections of a split, those of the first images only if fewer were asked for."""
        path = self.options.run / "wsod" / split / "detections.json"
        made, limit = read_manifest(path.parent).limit, self.limit(split)
        if made == limit:
            return path
        whole = open_split(split, self.options.data)
        found = read_results(path, whole if made is None else whole.limited(made))
        cut = self.options.out / "teacher" / split / "detections.json"
        assert limit is not None
        write_results(cut, whole.limited(limit), found)
        return cut


def _need(path: Path, stage: str) -> None:
    if not (path.is_file() and (path.parent / MANIFEST_NAME).is_file()):
        raise MissingInputError(
            f"the run has no finished {stage} for this split",
            where=path,
            hint="bring the run that far (make wsod DATASET=...), or name another with --run",
        )


def _recipe(name: str, stage: str) -> list[tuple[str, dict[str, Any]]]:
    """A stage's settings in a recipe and those it is based on, lowest first."""
    return [(layer, sections.get(stage, {})) for layer, sections in recipe_layers(name)]
