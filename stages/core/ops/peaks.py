"""Peak points of a map: Algorithm 1 of the paper (docs/method.md, section 3.1).

Max-pool, keep the pixels that equal their window's maximum, sort by value, then walk down the list: a point below the
threshold ends the walk, a kept point removes every later one within k/2 (Euclidean). Two faults of the published form
are mended before the walk: equal neighbouring maxima (plateaus, which upsampling makes at every border) count as one
point, and a map without contrast has no peak.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
Points = NDArray[np.float32]

MAX_PEAKS = 25


def max_pool(map_HW: Map, window: int) -> Map:
    """Return the running maximum over a `window` x `window` neighbourhood, clipped at the borders.

    A grey dilation: OpenCV's gives the bits of torch's max_pool2d in a fortieth of its time on one core.
    """
    kernel = np.ones((window, window), np.uint8)
    return np.asarray(cv2.dilate(np.ascontiguousarray(map_HW, np.float32), kernel), np.float32)


def peaks(map_HW: Map, window: int, threshold: float, limit: int = MAX_PEAKS) -> tuple[Points, Points]:
    """Find the peak points of one map, highest first.

    Args:
        map_HW: finite values; the threshold refers to them as they are (normalise to [0, 1] before).
        window: odd side k of the max-pool in pixels; kept points are more than k/2 apart.
        threshold: a point is kept if its value is at least this.
        limit: at most this many points are kept.

    Returns:
        points_xy [n, 2] in pixel-centre coordinates (pixel (0, 0) is at 0.5, 0.5), and values [n], descending;
        equal values are ordered by row, then column.
    """
    assert window % 2 == 1, "the window must be odd"
    if map_HW.size == 0 or not map_HW.max() > map_HW.min():
        return np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    is_high = map_HW >= threshold
    # What exceeds a high pixel is high itself: the box around all of them holds every window's maximum that counts.
    rows, columns = np.flatnonzero(is_high.any(axis=1)), np.flatnonzero(is_high.any(axis=0))
    if len(rows) == 0:
        return np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    is_maximum = (map_HW[box] == max_pool(map_HW[box], window)) & is_high[box]
    points_xy, values = _separate_plateaus(map_HW[box], is_maximum)
    points_xy += np.array([columns[0], rows[0]], np.float32)
    order = np.lexsort((points_xy[:, 0], points_xy[:, 1], -values))
    kept = suppress_neighbours(points_xy[order], window / 2)[:limit]
    return points_xy[order][kept] + np.float32(0.5), values[order][kept]


def suppress_neighbours(points_xy: Points, radius: float) -> NDArray[np.int64]:
    """Return indices of the points that survive: each removes every later one at most `radius` away."""
    kept: list[int] = []
    for index, point in enumerate(points_xy):
        if not kept or bool((np.linalg.norm(points_xy[kept] - point, axis=1) > radius).all()):
            kept.append(index)
    return np.array(kept, np.int64)


def _separate_plateaus(map_HW: Map, is_maximum: NDArray[np.bool_]) -> tuple[Points, Points]:
    """Replace each connected patch of maxima by the member nearest its centroid; return (x, y) and values.

    Maxima that touch are equal: each is the largest of a window that holds the other.
    """
    count, labels, _, centroids = cv2.connectedComponentsWithStats(
        is_maximum.astype(np.uint8), connectivity=8
    )
    rows, columns = np.nonzero(is_maximum)
    owner = labels[rows, columns]
    distance = np.hypot(columns - centroids[owner, 0], rows - centroids[owner, 1])
    # Nearest member first within each patch; ties go to the upper, then the left one.
    order = np.lexsort((columns, rows, distance.round(6), owner))
    first = order[np.unique(owner[order], return_index=True)[1]]
    assert len(first) == count - 1
    points_xy = np.stack([columns[first], rows[first]], axis=1).astype(np.float32)
    return points_xy, map_HW[rows[first], columns[first]].astype(np.float32)


def refine_subpixel(map_HW: Map, points_xy: Points) -> Points:
    """Move peaks of a coarse grid to the top of the parabola through each and its neighbours, per axis.

    Points stay within half a cell; peaks on the border or on a flat keep that coordinate.
    """
    refined = points_xy.copy()
    height, width = map_HW.shape
    for index, (x, y) in enumerate(points_xy - 0.5):
        column, row = round(float(x)), round(float(y))
        if 0 < column < width - 1:
            refined[index, 0] += _vertex(
                map_HW[row, column - 1], map_HW[row, column], map_HW[row, column + 1]
            )
        if 0 < row < height - 1:
            refined[index, 1] += _vertex(
                map_HW[row - 1, column], map_HW[row, column], map_HW[row + 1, column]
            )
    return refined


def _vertex(left: np.float32, middle: np.float32, right: np.float32) -> float:
    curvature = float(left) - 2.0 * float(middle) + float(right)
    if curvature >= 0:
        return 0.0
    return min(0.5, max(-0.5, 0.5 * (float(left) - float(right)) / curvature))
