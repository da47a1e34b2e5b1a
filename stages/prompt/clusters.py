"""Thinning of the many cross-attention peaks (one set per layer, head and class) to a few prompt points.

`kmeans` is the paper's rule: all points of an image together, whatever their class, five to a cluster, centroids as
prompts. A centroid may lie between two objects. `merge` is ours: per class, the points of a neighbourhood agree on
the one with most support, so a prompt is always a peak that some head saw.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Labels = NDArray[np.int64]

POINTS_PER_CLUSTER = 5


@dataclass(frozen=True)
class Clusters:
    """Clusters of points.

    Attributes:
        points_xy: one point per cluster [k, 2].
        scores: one score per cluster [k], in [0, 1].
        origin: the input point that each cluster's point is [k], or -1 for a centroid.
        members: cluster of each input point [n], in [0, k), or -1 for a point that no cluster holds.
    """

    points_xy: Points
    scores: Points
    origin: Labels
    members: Labels


def kmeans(points_xy: Points, seed: int) -> Clusters:
    """Cluster by k-means into max(1, n // 5) clusters; prompts are the centroids, their scores one.

    No point gives no cluster: nothing is invented for an image without peaks.
    """
    if len(points_xy) == 0:
        return _empty()
    count = max(1, len(points_xy) // POINTS_PER_CLUSTER)
    if count == 1:  # nothing to search for, and OpenCV would read a single point as two numbers
        members = np.zeros(len(points_xy), np.int64)
        return Clusters(
            points_xy.mean(axis=0, keepdims=True), np.ones(1, np.float32), np.array([-1]), members
        )
    cv2.setRNGSeed(seed % (2**31 - 1))
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 300, 1e-4)
    samples = np.ascontiguousarray(points_xy, np.float32)
    _, labels, centres = cv2.kmeans(
        samples, count, np.zeros((0, 1), np.int32), stop, 1, cv2.KMEANS_PP_CENTERS
    )
    members = labels.ravel().astype(np.int64)
    return Clusters(centres.astype(np.float32), np.ones(count, np.float32), np.full(count, -1), members)


def merge(points_xy: Points, scores: Points, radius: float, min_support: int) -> Clusters:
    """Greedy merging of the peaks of one class.

    The point with the largest summed score within `radius` becomes a prompt and takes its neighbours away; repeat.
    Its score is the share of the strongest prompt's support.

    Args:
        points_xy: peaks [n, 2], pixels.
        scores: their values [n], in [0, 1].
        radius: neighbourhood, pixels.
        min_support: clusters of fewer points are dropped, unless none would remain.
    """
    if len(points_xy) == 0:
        return _empty()
    near = np.linalg.norm(points_xy[:, None] - points_xy[None], axis=2) <= radius
    free = np.ones(len(points_xy), bool)
    members = np.full(len(points_xy), -1, np.int64)
    chosen: list[int] = []
    supports: list[float] = []
    while free.any():
        support = (near & free[None, :]) @ scores
        support[~free] = -1.0
        best = int(support.argmax())
        taken = near[best] & free
        if int(taken.sum()) >= min_support or not chosen:
            members[taken] = len(chosen)
            chosen.append(best)
            supports.append(float(support[best]))
        free &= ~taken
    strength = np.array(supports, np.float32)
    origin = np.array(chosen, np.int64)
    return Clusters(points_xy[chosen].copy(), strength / max(float(strength.max()), 1e-12), origin, members)


def _empty() -> Clusters:
    none = np.zeros(0, np.int64)
    return Clusters(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), none, none)
