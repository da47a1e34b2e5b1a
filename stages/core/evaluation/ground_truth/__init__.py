"""Ground-truth readers: the only place where the boxes and masks of a data set are read."""

from __future__ import annotations

from stages.core.evaluation.ground_truth.load import load_ground_truth
from stages.core.evaluation.ground_truth.types import RLE, GroundTruth, GroundTruthProblem, ImageGroundTruth

__all__ = ["RLE", "GroundTruth", "GroundTruthProblem", "ImageGroundTruth", "load_ground_truth"]
