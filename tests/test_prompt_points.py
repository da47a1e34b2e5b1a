"""Clusters and points of an image; the prompt stage on hand-made maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.core.artifacts.schemas import CAMS
from stages.core.artifacts.table import ImageRows, Table, gather
from stages.core.config import load_recipe
from stages.core.errors import SchemaError
from stages.prompt.clusters import kmeans, merge
from stages.prompt.config import PromptConfig
from stages.prompt.points import image_points, map_peaks

GRID = PromptConfig()
PAPER_CONFIG = PromptConfig.model_validate(load_recipe("paper")["prompt"])


def bump(x: int, y: int, size: tuple[int, int] = (12, 16)) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows, columns = np.mgrid[: size[0], : size[1]]
    values: np.ndarray[Any, np.dtype[np.float32]] = np.exp(
        -((columns - x) ** 2 + (rows - y) ** 2) / 4.0
    ).astype(np.float32)
    return values


def cams(*maps: tuple[int, int, int, int, np.ndarray[Any, np.dtype[np.float32]]]) -> Table:
    """Maps as (class, kind, layer, head, values) of the image `a`, 96 x 128 pixels."""
    table = np.array([m[:4] for m in maps], np.int64).reshape(-1, 4)
    columns: dict[str, Any] = {n: table[:, i] for i, n in enumerate(("class_index", "kind", "layer", "head"))}
    columns["grid_h"] = np.array([m[4].shape[0] for m in maps], np.int64)
    columns["grid_w"] = np.array([m[4].shape[1] for m in maps], np.int64)
    rows = ImageRows(columns, {"image_h": 96, "image_w": 128}, {"values": [m[4] for m in maps]})
    return gather(CAMS, {"a": rows})


@pytest.mark.parametrize(("points", "clusters"), [(0, 0), (1, 1), (4, 1), (5, 1), (9, 1), (10, 2), (23, 4)])
def test_kmeans__n_over_five_clusters(points: int, clusters: int) -> None:
    xy = np.random.default_rng(0).uniform(0, 100, (points, 2)).astype(np.float32)
    found = kmeans(xy, seed=1)
    assert found.points_xy.shape == (clusters, 2)
    assert set(found.members.tolist()) == set(range(clusters))
    assert (found.origin == -1).all()


def test_kmeans__centroids_are_means_of_their_members_and_repeat() -> None:
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.normal(20, 1, (5, 2)), rng.normal(80, 1, (5, 2))]).astype(np.float32)
    found, again = kmeans(xy, seed=1), kmeans(xy, seed=1)
    for cluster in range(2):
        np.testing.assert_allclose(found.points_xy[cluster], xy[found.members == cluster].mean(0), rtol=1e-4)
    np.testing.assert_array_equal(found.points_xy, again.points_xy)


def test_kmeans__equal_points_do_not_fail() -> None:
    found = kmeans(np.full((12, 2), 7.0, np.float32), seed=0)
    assert np.isfinite(found.points_xy).all()


def test_merge__best_supported_peak_wins_and_lonely_ones_go() -> None:
    xy = np.array([[10, 10], [12, 10], [11, 11], [50, 50], [52, 50], [90, 90]], np.float32)
    found = merge(xy, np.array([0.9, 0.9, 1.0, 0.9, 0.95, 1.0], np.float32), radius=5, min_support=2)
    assert found.points_xy.tolist() == [[10, 10], [50, 50]]
    assert found.members.tolist() == [0, 0, 0, 1, 1, -1]
    assert found.origin.tolist() == [0, 3]
    assert found.scores[0] == 1.0
    assert found.scores[1] == pytest.approx(1.85 / 2.8)


def test_merge__a_single_lonely_peak_is_kept() -> None:
    assert merge(np.array([[3, 4]], np.float32), np.ones(1, np.float32), 5, 2).points_xy.tolist() == [[3, 4]]
    assert len(merge(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), 5, 2).scores) == 0


@pytest.mark.parametrize("config", [GRID, PAPER_CONFIG])
def test_map_peaks__lie_on_the_bump_and_inside_the_image(config: PromptConfig) -> None:
    for x, y in ((8, 6), (0, 0), (15, 11)):
        points, values = map_peaks(bump(x, y), (96, 128), config, cross=False)
        assert len(points) == 1
        assert values[0] >= 0.9
        # Clamped interpolation makes the enlarged map flat outside the outer cell centres.
        np.testing.assert_allclose(points[0], [(x + 0.5) * 8, (y + 0.5) * 8], atol=4.01)
        assert (points < [128, 96]).all()


def test_map_peaks__threshold_refers_to_the_enlarged_map() -> None:
    values_HW = np.zeros((20, 30), np.float32)
    values_HW[5, 6], values_HW[14, 20] = 1.0, 0.93  # between cells the enlarged map reaches 0.94 of them
    points, values = map_peaks(values_HW, (320, 480), PAPER_CONFIG, cross=False)
    assert values == pytest.approx([1.0, 0.93])
    assert np.floor(points / 16).astype(int).tolist() == [[6, 5], [20, 14]]


def test_image_points__sources_classes_and_clusters() -> None:
    table = cams(
        (1, 0, -1, -1, bump(3, 3)),
        (1, 1, -1, -1, bump(12, 8)),
        (1, 2, 0, 0, bump(3, 3)),
        (1, 2, 0, 1, bump(3, 3)),
        (2, 2, 0, 0, bump(12, 8)),
        (2, 2, 0, 1, bump(12, 8)),
    )
    rows = image_points(table, "a", GRID, seed=0).columns
    assert rows["source"].tolist() == [0, 1, 2, 2]
    assert rows["class_index"].tolist() == [1, 1, 1, 2]
    assert rows["cluster"].tolist() == [-1, -1, 0, 1]
    assert rows["layer"].tolist() == [-1, -1, 0, 0]
    paper = image_points(table, "a", PAPER_CONFIG, seed=0).columns
    assert paper["class_index"].tolist() == [1, 1, -1]
    # Four points make one cluster: its centroid lies between the two classes.
    assert paper["x"][2] == pytest.approx((paper["x"][0] + paper["x"][1]) / 2, abs=0.1)


@pytest.mark.parametrize("config", [GRID, PAPER_CONFIG])
def test_image_points__without_peaks_no_point_is_invented(config: PromptConfig) -> None:
    flat = np.zeros((12, 16), np.float32)
    rows = image_points(cams((0, 0, -1, -1, flat), (0, 2, 0, 0, flat)), "a", config, seed=0)
    assert len(rows.columns["x"]) == 0
    assert len(image_points(cams(), "a", config, seed=0).columns["x"]) == 0


def test_image_points__damaged_map_is_an_error() -> None:
    bad = bump(3, 3)
    bad[0, 0] = np.nan
    with pytest.raises(SchemaError, match="not finite"):
        image_points(cams((0, 0, -1, -1, bad)), "a", GRID, seed=0)
