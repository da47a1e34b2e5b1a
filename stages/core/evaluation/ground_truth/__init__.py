"""Ground-truth readers: the only place where the boxes and masks of a data set are read."""

from __future__ import annotations

from stages.core.evaluation.ground_truth.load import load_truth
from stages.core.evaluation.ground_truth.types import RLE, ImageTruth, Truth, TruthProblem

__all__ = ["RLE", "ImageTruth", "Truth", "TruthProblem", "load_truth"]
