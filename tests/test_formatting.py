"""Numbers and durations as text."""

from __future__ import annotations

import pytest

from stages.core.formatting import format_duration, format_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.5, "0.500"),
        (43.21, "43.2"),
        (1234, "1,234"),
        (1234.5, "1,234"),
        (105.1, "105.1"),
        (0, "0"),
    ],
)
def test_format_number__reads_well(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (41.2, "41 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_format_duration__reads_well(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
