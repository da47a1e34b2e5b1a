"""The page of a run: whole and partial runs, nothing loaded from elsewhere, names escaped."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.artifacts.manifest import read_manifest, write_manifest
from stages.core.datasets.catalog import open_split
from stages.core.errors import MissingInputError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.suite import evaluate_run
from stages.core.registry import CHAIN
from stages.core.structures.detections import Detections
from stages.core.viz import report
from stages.core.viz.charts import line_chart
from stages.core.viz.funnel import _dropped
from stages.core.viz.image_choice import chosen_images, evenly_spaced
from stages.core.viz.panels import strongest
from stages.core.viz.report import headlines, words, write_report
from stages.core.viz.run_facts import read_curves, read_run
from tests.command_builder import run as command
from tests.run_builder import build_run, draw_toy_data
from weaksam_cli.tables import print_run_table

PICTURES = (
    "Coarse map", "Fine map", "Cross map", "Point prompts", "Proposals", "WSOD detections", "Pseudo ground truth",
    "Retrained detector", "Pseudo masks", "Instance segmenter", "Ground truth",
)  # fmt: skip


class Page(HTMLParser):
    """Collects what a browser would load, the alt texts of pictures, and checks that tags nest."""

    VOID = frozenset({"meta", "img", "br", "input", "link", "line"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.alts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [values[k] or "" for k in ("src", "href", "srcset", "data") if k in values]
        if tag == "img" and values.get("src"):
            self.alts.append(values.get("alt") or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data root and run folder of a finished run with figures."""
    base = tmp_path_factory.mktemp("toy")
    data, run = base / "data", base / "runs" / "toy"
    draw_toy_data(data, train=2, test=1)
    build_run(run, data, "toy_train", CHAIN)
    build_run(run, data, "toy_test", [stage for stage in CHAIN if stage != "pgt"])
    evaluate_run(run, data, "toy_train", "toy_test")
    return data, run


@pytest.fixture(scope="module")
def text(toy: tuple[Path, Path]) -> str:
    """The page of the finished run."""
    data, run = toy
    return write_report(run, data, "toy_train", "toy_test", run / "report.html").read_text(encoding="utf-8")


def test_write_report__whole_run(text: str) -> None:
    page = Page(text)
    assert page.open == []
    assert len(text.encode()) <= 6_000_000
    for title in PICTURES:
        assert any(alt.startswith(title) for alt in page.alts), title
    assert "recall@.50" in text
    assert "AP50 of the retrained detector" in text
    assert text.count("<path") > 0, "training curves"


def test_write_report__loads_nothing(text: str) -> None:
    loads = Page(text).loads
    assert loads
    assert all(load.startswith(("data:image/jpeg;base64,", "#")) for load in loads)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|<link", text)


def test_write_report__same_run_same_bytes(toy: tuple[Path, Path], text: str) -> None:
    data, run = toy
    again = write_report(run, data, "toy_train", "toy_test", run / "again.html")
    assert again.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("stages", "seen", "unseen"),
    [
        (["cam"], "Coarse map", "Point prompts"),
        (["cam", "prompt", "propose"], "Proposals", "WSOD detections"),
        (["pgt"], "Pseudo ground truth", "Coarse map"),
    ],
)
def test_write_report__partial_run(
    toy: tuple[Path, Path], tmp_path: Path, stages: list[str], seen: str, unseen: str
) -> None:
    data, _ = toy
    build_run(tmp_path / "run", data, "toy_train", stages)
    (tmp_path / "run" / "wsod" / "toy_train").mkdir(parents=True)
    out = write_report(tmp_path / "run", data, "toy_train", "toy_test", tmp_path / "report.html")
    text = out.read_text(encoding="utf-8")
    alts = Page(text).alts
    assert any(alt.startswith(seen) for alt in alts)
    assert not any(alt.startswith(unseen) for alt in alts)
    assert "not finished" in text


def test_write_report__damaged_artifact_is_named(toy: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = toy
    build_run(tmp_path / "run", data, "toy_train", ["cam", "pgt"])
    (tmp_path / "run" / "cam" / "toy_train" / "cams.h5").write_bytes(b"not HDF5")
    out = write_report(tmp_path / "run", data, "toy_train", "", tmp_path / "report.html")
    text = out.read_text(encoding="utf-8")
    assert "Could not be read" in text
    assert "cam/toy_train/cams.h5" in text
    assert any(alt.startswith("Pseudo ground truth") for alt in Page(text).alts)


def test_write_report__names_and_reasons_are_escaped(tmp_path: Path) -> None:
    import cv2

    nasty = "<b>&'cat'"
    folder = tmp_path / "data" / "photos"
    (folder / "images").mkdir(parents=True)
    for name in ("a", "b"):
        cv2.imwrite(str(folder / "images" / f"{name}.png"), np.full((40, 50, 3), 99, np.uint8))
    (folder / "tags.csv").write_text(f'file_name,tags\na.png,"{nasty}"\nb.png,"{nasty}"\n')
    (folder / "dataset.yaml").write_text("format: folder\nsubsets: {train: {role: train, file: tags.csv}}\n")
    cam = tmp_path / "run" / "cam" / "photos_train"
    cam.mkdir(parents=True)
    manifest = {
        "stage": "cam", "split": "photos_train", "config": {"note": "<script>alert(1)</script>"}, "seed": 0,
        "version": "0.1.0", "git": None, "command": ["weaksam", "<i>"], "schema_version": 1, "inputs": {},
        "failures": [{"id": "<img src=x>", "reason": "<b>bad</b>"}],
    }  # fmt: skip
    (cam / "manifest.json").write_text(json.dumps(manifest))
    out = write_report(tmp_path / "run", tmp_path / "data", "photos_train", "", tmp_path / "report.html")
    text = out.read_text(encoding="utf-8")
    for raw in (nasty, "<script>alert", "<img src=x>", "<b>bad</b>", "<i>"):
        assert raw not in text.replace("<i></i>", "")
    assert "&lt;b&gt;&amp;&#39;cat&#39;" in text
    assert "no boxes to compare with" in text


def test_write_report__of_images_with_tags_alone(
    toy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = toy
    split = open_split("toy_train", data)
    folder = tmp_path / "data" / "toy"
    (folder / "images").mkdir(parents=True)
    lines = ["file_name,tags"]
    for image_id in split.ids:
        source = split.image_path(image_id)
        shutil.copy(source, folder / "images" / source.name)
        lines.append(f"{source.name},{';'.join(split.classes[c] for c in split.tags(image_id))}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    (folder / "dataset.yaml").write_text(
        f"format: folder\nclasses: [{', '.join(split.classes)}]\nsubsets: {{train: train}}\n"
    )
    own = tmp_path / "run"
    shutil.copytree(run, own)
    found = evaluate_run(own, tmp_path / "data", "toy_train", "")
    assert all(row["metrics"] == {} and "toy_train" in row["problem"] for row in found["rows"])
    print_run_table(found)
    assert "not measured" in capsys.readouterr().out
    page = write_report(own, tmp_path / "data", "toy_train", "", tmp_path / "report.html")
    assert "Pseudo ground truth" in page.read_text(encoding="utf-8")


def test_write_report__nothing_there(toy: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no stage of toy_train"):
        write_report(tmp_path, toy[0], "toy_train", "", tmp_path / "report.html")


def test_read_curves__resumed_and_cut_short(tmp_path: Path) -> None:
    lines = [
        '{"phase": "train", "step": 0, "epoch": 0, "loss": 2.0}',
        '{"phase": "train", "step": 10, "epoch": 0, "loss": 9.0}',
        '{"phase": "train", "step": 10, "epoch": 0, "loss": 1.0, "loss_cls": NaN}',
        '{"summary": 1}',
        '{"phase": "held-out", "epoch": 0, "mean_average_precision": 0.5}',
        '{"phase": "train", "step": 20, "los',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_curves(tmp_path / "metrics.jsonl") == {
        "train": {"loss": [(0, 2.0), (10, 1.0)]},
        "held-out": {"mean_average_precision": [(0, 0.5)]},
    }


def test_read_run__unfinished_stage_has_no_folder_to_read(toy: tuple[Path, Path], tmp_path: Path) -> None:
    build_run(tmp_path, toy[0], "toy_train", ["cam", "pgt"])
    (tmp_path / "pgt" / "toy_train" / "manifest.json").unlink()
    facts = read_run(tmp_path, ("toy_train",))
    assert list(facts.finished("toy_train")) == ["cam"]
    assert [s.stage for s in facts.stages] == ["cam", "pgt"]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, ["c"]), (2, ["b", "d"]), (5, list("abcde")), (9, list("abcde"))]
)
def test_evenly_spaced__spread(count: int, expected: list[str]) -> None:
    assert evenly_spaced(list("abcde"), count) == expected


def test_strongest__half_of_the_best_and_a_dozen() -> None:
    scores = np.array([0.2, 0.8, 0.39, 0.41], np.float32)
    found = Detections(np.zeros((4, 4), np.float32), np.arange(4), scores)
    assert strongest(found).classes.tolist() == [1, 3]
    many = Detections(np.zeros((20, 4), np.float32), np.arange(20), np.full(20, 0.1, np.float32))
    assert strongest(many).classes.tolist() == list(range(12))
    assert len(strongest(Detections.empty())) == 0


def test_headlines__test_split_comes_first_and_none_is_left_out() -> None:
    rows = [
        {"stage": "retrain", "split": "x_train", "metrics": {"ap50": 0.5}},
        {"stage": "retrain", "split": "x_test", "metrics": {"ap50": 0.25}},
        {"stage": "wsis", "split": "x_test", "metrics": {"mask_ap50": None}},
    ]
    assert headlines(rows) == [("0.250", "AP50 of the retrained detector", "x_test")]


def test_line_chart__higher_is_further_up() -> None:
    chart = line_chart("t", {"loss": [(0, 4.0), (10, 1.0)], "none": []})
    assert chart is not None
    assert chart.lines[0].path == "M6.0 6.0L314.0 94.5"
    assert (chart.low, chart.high, chart.steps) == ("0.000", "4.000", 10)
    assert line_chart("t", {"loss": [(0, 4.0)]}) is None


def test_line_chart__constant_curve_is_drawn() -> None:
    chart = line_chart("t", {"x": [(0, 3.0), (5, 3.0)]})
    assert chart is not None
    assert "nan" not in chart.lines[0].path


@pytest.mark.parametrize(
    ("name", "text"),
    [("mask_ap50", "mask AP50"), ("recall75", "recall@.75"), ("ap50_11point", "AP50 (11-point)")],
)
def test_words__reads_well(name: str, text: str) -> None:
    assert words(name) == text


def test_page__funnel_says_what_is_where_and_why_images_are_empty(text: str) -> None:
    table = text.split('class="funnel"')[1].split("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    steps = {(re.sub("<.*?>", "", row[0]), row[1]): row[2:] for row in rows if row}
    assert list(steps)[:4] == [
        ("", "images"),
        ("cam", "maps"),
        ("prompt", "points"),
        ("propose", "proposals"),
    ]
    assert ("wsis", "pseudo masks") in steps
    assert steps["", "images"][0] == "2"
    assert "80 grid" in steps["propose", "proposals"][2]  # forty of each image


def test_funnel__boxes_dropped_with_the_reason() -> None:
    classes = [
        {"class": "cat", "tagged_images": 2, "detections": 9, "above_threshold": 5, "boxes": 3},
        {"class": "dog", "tagged_images": 1, "detections": 1, "above_threshold": 0, "boxes": 0},
    ]
    assert _dropped({"classes": classes}) == [
        "of 10 detections of a tag",
        "5 dropped: score below the threshold",
        "2 dropped: part of, or the same as, a better box",
        "no box for dog",
    ]


def found(*boxes: tuple[float, float, float, float]) -> Detections:
    count = len(boxes)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(corners, np.zeros(count, np.int64), np.linspace(0.9, 0.8, count).astype(np.float32))


def test_chosen_images__by_order() -> None:
    ids = ["a", "b", "c", "d"]
    objects = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float64)
    flags = np.zeros(2, bool)
    truth = ImageGroundTruth(40, 40, objects, np.zeros(2, np.int64), flags, flags)
    boxes = {
        "a": found((0, 0, 10, 10), (20, 20, 30, 30)),  # both objects
        "b": found((0, 0, 10, 10)),  # one
        "d": found((0, 0, 10, 10), (20, 0, 30, 10)),  # one, and a box beside
    }
    every = dict.fromkeys(ids, truth)
    assert chosen_images(ids, 3, "worst", boxes, every) == ["c", "d", "b"]
    assert chosen_images(ids, 2, "worst", boxes, {})[0] == "c"  # without ground truth: by the highest score
    assert chosen_images(ids, 2, "id", boxes, every) == ["a", "b"]
    assert chosen_images(ids, 2, "spread", boxes, every) == ["b", "d"]


def test_write_report__as_many_images_as_asked_for_and_as_fit(
    toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = toy

    def page(**more: Any) -> str:
        out = write_report(run, data, "toy_train", "", tmp_path / "report.html", **more)
        return out.read_text(encoding="utf-8")

    assert page(images=1, order="id").count("<article>") == 1
    monkeypatch.setattr(report, "QUALITIES", (25,))
    monkeypatch.setattr(report, "MOST_BYTES", len(page(images=2)) - 1)
    smaller = page(images=2, order="worst")
    assert smaller.count("<article>") == 1
    assert "1 of 2 images" in " ".join(smaller.split())
    assert "went worst" in smaller


def test_report_command__two_runs_compared(
    toy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = toy
    other = tmp_path / "other"
    shutil.copytree(run / "wsod", other / "wsod")
    folder = other / "wsod" / "toy_train"
    manifest = read_manifest(folder)
    manifest.config["threshold"] = 0.5
    write_manifest(folder, manifest)
    assert command("report", str(other), str(run), "--data", str(data), "--images", "1") == 0
    assert f"report: {other / 'report.html'}" in capsys.readouterr().out
    section = (
        (other / "report.html").read_text(encoding="utf-8").split('id="compared"')[1].split("</section>")[0]
    )
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", section)]
    assert ["wsod on toy_train", "threshold", "0.5", "0.9", ""] in rows
    changes = {(row[0], row[1]): row[4] for row in rows if row and row[0] == "wsod on toy_test"}
    assert changes["wsod on toy_test", "AP50"] == "0.000"
    assert command("report") == 2
    assert command("report", str(tmp_path / "none")) == 3


def test_page__has_a_column_for_every_stage_in_every_row(text: str) -> None:
    section = text.split('<section id="toy_train">')[1].split("</section>")[0]
    rows = [
        re.findall(r'<div class="column">(.*?)</div>', row, re.DOTALL)
        for row in section.split("<article>")[1:]
    ]
    titles = [[re.findall(r"<b>(.*?)</b>", column)[:1] for column in row] for row in rows]
    assert len(rows) == 2
    assert titles[0] == titles[1]
    assert [title for (title,) in titles[0]][:2] == ["Image", "Coarse map"]
    assert titles[0][-1] == ["Ground truth"]
