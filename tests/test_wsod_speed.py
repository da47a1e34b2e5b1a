"""The benchmark of `wsod`: both ways of mining agree, and memory of mining grows linearly."""

from __future__ import annotations

import argparse
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.wsod_speed import Bench, LiveBytes, drawn_proposals, our_targets, published_targets


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 120), st.integers(0, 2**31))
def test_our_targets__the_published_loop_says_the_same(count: int, seed: int) -> None:
    boxes = drawn_proposals(count, 96, 128)
    scores = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    for mine, theirs in zip(
        our_targets(scores, (0, 2), boxes), published_targets(scores, (0, 2), boxes), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_our_targets__memory_is_linear_in_proposals() -> None:
    peaks = []
    for count in (1000, 2000, 4000, 8000):
        boxes, scores = drawn_proposals(count, 224, 288), torch.rand(count, 3)
        with LiveBytes() as live:
            our_targets(scores, (0, 1), boxes)
        peaks.append(live.peak)
    assert all(large < 2.2 * small for small, large in itertools.pairwise(peaks)), peaks


def test_live_bytes__peak_and_release() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)
        view = first[:10]
        del first
        assert live.now == 4000, "a view keeps its storage"
        del view
        torch.zeros(500)
    assert (live.now, live.peak) == (0, 4000)


@pytest.mark.parametrize("method", ["oicr", "mist"])
def test_bench__every_section_has_its_time(method: str) -> None:
    options = argparse.Namespace(
        device="cpu",
        method=method,
        backbone="lite0-embedded",
        pooler_type="roi_align",
        size=64,
        classes=3,
        tags=2,
        repeats=1,
    )
    row = Bench(options).measure(30)
    assert all(seconds > 0 for seconds in row["seconds"].values())
    assert 0 < row["mining_fraction"]["median"] < 1
    assert row["step_peak_MiB"] > row["mining_peak_MiB"] > 0
