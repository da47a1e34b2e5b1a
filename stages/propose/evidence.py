"""Map evidence of an image's boxes: its maps, read from `cams.h5`, measured in every box."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from stages.core.artifacts.cams import stored_map
from stages.core.artifacts.evidence import ProposalEvidence, evidence_pools
from stages.core.artifacts.schemas import EVIDENCE_VALUES, MAP_KINDS, rows_to_boxes
from stages.core.artifacts.table import ImageRows, Table
from stages.core.ops.map_evidence import map_evidence


def with_evidence(found: ImageRows, cams: Table | None, image_id: str, device: str = "cpu") -> ImageRows:
    """Add to an image's proposals what its maps say about them; without maps, evidence of no class."""
    if cams is None:
        nothing = ProposalEvidence.empty(len(found.columns["x1"]))
        return ImageRows(found.columns, found.image_columns, found.pools | evidence_pools(nothing))
    boxes_N4 = torch.from_numpy(rows_to_boxes(found.columns))
    image_hw = (int(found.image_columns["image_h"]), int(found.image_columns["image_w"]))
    evidence = image_evidence(cams, image_id, boxes_N4, image_hw, device)
    return ImageRows(found.columns, found.image_columns, found.pools | evidence_pools(evidence))


def image_evidence(
    cams: Table, image_id: str, boxes_xyxy: torch.Tensor, image_hw: tuple[int, int], device: str = "cpu"
) -> ProposalEvidence:
    """Evidence of every class that has maps of the image: its tags on a train split, else its predicted classes.

    Args:
        cams: The open table; an image that it does not hold gives evidence of no class.
        image_id: The image.
        boxes_xyxy: (N, 4) half-open pixels.
        image_hw: Size of the image, pixels.
        device: Where to compute.

    Several maps of a kind (cross: one per layer and head) count as their mean. A map that is flat, or not finite,
    gives nan.

    Raises:
        SchemaError: the values of a map do not fit its grid, or maps of one class and kind lie on different grids.
    """
    boxes_N4 = boxes_xyxy.to(device)
    rows = cams.rows(image_id)
    classes = np.unique(rows["class_index"]).astype(np.int64)
    shape = (len(boxes_N4), len(classes), len(MAP_KINDS), len(EVIDENCE_VALUES))
    values = np.full(shape, np.nan, np.float32)
    for kind in range(len(MAP_KINDS)):
        maps = {c: _mean_map(cams, image_id, int(label), kind) for c, label in enumerate(classes)}
        usable = {c: own for c, own in maps.items() if own is not None and says_something(own)}
        for members in _of_one_grid(usable):
            stacked_KHW = torch.from_numpy(np.stack([usable[c] for c in members])).to(device)
            found = map_evidence(stacked_KHW, boxes_N4, image_hw)
            measured_KN3 = torch.stack((found.mass, found.density, found.ring), dim=-1)
            values[:, members, kind] = measured_KN3.transpose(0, 1).cpu().numpy()
    return ProposalEvidence(classes, values)


def says_something(values_HW: NDArray[np.float32]) -> bool:
    """Whether a map is finite and not flat."""
    return bool(np.isfinite(values_HW).all() and values_HW.max() > values_HW.min())


def _mean_map(cams: Table, image_id: str, label: int, kind: int) -> NDArray[np.float32] | None:
    rows = cams.rows(image_id)
    members = np.flatnonzero((rows["class_index"] == label) & (rows["kind"] == kind)).tolist()
    maps = [stored_map(cams, rows, member, image_id) for member in members]
    return np.mean(np.stack(maps), axis=0) if maps else None


def _of_one_grid(maps: dict[int, NDArray[np.float32]]) -> list[list[int]]:
    """Keys of the maps that share a grid; those of one image nearly always do."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for key, values in maps.items():
        groups.setdefault(values.shape, []).append(key)
    return list(groups.values())
