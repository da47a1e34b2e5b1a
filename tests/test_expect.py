"""Expectations on figures."""

from __future__ import annotations

import math

import pytest

from stages.core.errors import ExpectationError, UsageError
from stages.core.evaluation.expect import Expectation, check_expectations, parse_expectation

METRICS = {"ap50": 0.6, "retrain.shapes_test.ap50": 0.4, "corloc": math.nan, "recall50": None, "loss": -1.5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ap50>=0.6", Expectation("ap50", ">=", 0.6)),
        (" AP50 < 1 ", Expectation("AP50", "<", 1.0)),
        ("retrain.shapes_test.ap50==4e-1", Expectation("retrain.shapes_test.ap50", "==", 0.4)),
    ],
)
def test_parse_expectation__cases(text: str, expected: Expectation) -> None:
    assert parse_expectation(text) == expected


@pytest.mark.parametrize("text", ["", "ap50", "ap50>=", ">=0.5", "ap50=0.5", "ap50>=high", "ap50>=0.5.1"])
def test_parse_expectation__refuses(text: str) -> None:
    with pytest.raises(UsageError, match=r"--expect 'ap50>=0\.6'"):
        parse_expectation(text)


def test_check_expectations__met() -> None:
    check_expectations(["ap50>=0.6", "AP50<=0.6", "retrain.shapes_test.ap50>0.39", "loss<0"], METRICS)


@pytest.mark.parametrize("text", ["ap50>0.6", "ap50<0.6", "corloc>=0", "recall50>=0", "loss==1.5"])
def test_check_expectations__unmet(text: str) -> None:
    with pytest.raises(ExpectationError):
        check_expectations([text], METRICS)


def test_check_expectations__names_all_unmet_and_what_was_found() -> None:
    with pytest.raises(ExpectationError) as caught:
        check_expectations(["ap50>=0.7", "loss<0", "corloc>0.5"], METRICS)
    message = str(caught.value)
    assert "ap50>=0.7 (found 0.6000)" in message
    assert "corloc>0.5 (found undefined)" in message
    assert "loss" not in message
    assert caught.value.exit_code == 7


def test_check_expectations__unknown_figure_lists_close_ones() -> None:
    with pytest.raises(UsageError, match="did you mean 'ap50'"):
        check_expectations(["ap5>=0.7"], METRICS)
