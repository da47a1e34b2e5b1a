"""What the name of a subset says: whether it trains or tests, and which train split a test split goes with."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stages.core.datasets.split import Role

_TEST_WORDS = ("val", "test", "minival", "dev")
# "train2017", "seg_trainaug", "mini_val": words of letters with an optional number, joined by _ or -.
_WORD = re.compile(r"(?P<letters>[a-z]+)(?P<digits>\d*)")


def role_of(subset: str) -> Role | None:
    """Read the role off the words of a name.

    Returns:
        ``train`` if a word begins so (train, trainval, trainaug, train2017), ``test`` for val, test,
        minival and dev (val2017), None when the name says neither.
    """
    words = [match["letters"] for match in _WORD.finditer(subset.lower())]
    if any(word.startswith("train") for word in words):
        return "train"
    return "test" if any(word.startswith(_TEST_WORDS) for word in words) else None


def train_subset_for(subset: str, train_subsets: Iterable[str]) -> str | None:
    """Choose among the train subsets the one a test subset goes with; None if there is none.

    ``test`` prefers trainval to train. ``val`` prefers train: trainval contains val itself. Subsets of
    VOC's segmentation lists prefer trainaug, which was made to leave out their val. Names are matched
    with what surrounds the word: ``val2017`` goes with ``train2017``, ``mini_test`` with ``mini_train``.
    """
    names = sorted(train_subsets)
    tests_on_val = re.search(r"val|dev", subset.lower()) is not None
    kinds = ("train", "trainaug", "trainval") if tests_on_val else ("trainval", "train", "trainaug")
    wanted = [re.sub(r"(mini)?val|test|dev", kind, subset, count=1) for kind in kinds]
    if subset.startswith("seg_"):
        wanted = ["trainaug", "seg_trainaug", *wanted]
    wanted += [*kinds, "train2017", "train2014"]
    for name in wanted:
        if name in names:
            return name
    return names[0] if names else None
