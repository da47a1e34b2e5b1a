"""Settings of a tiny weakly supervised detector, and proposals for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.core.artifacts.evidence import ProposalEvidence, evidence_pools
from stages.core.artifacts.schemas import PROPOSALS
from stages.core.artifacts.table import ImageRows, gather, write_table
from tests.datasets_builders import HEIGHT, WIDTH

TINY: dict[str, Any] = {
    "pretrained": False, "fused_channels": 8, "pooler_resolution": 2, "fc_dim": 8, "train_short_sides": (32, 40),
    "test_short_side": 32,
    "epochs": 2, "batch_size": 1, "num_threads": 1, "lr": 1e-3,
}  # fmt: skip


def write_proposals(path: Path, counts: dict[str, int]) -> Path:
    """Random boxes for each image; one more that is too small."""
    rows = {}
    for image_id, count in counts.items():
        generator = np.random.default_rng(count)
        low = generator.uniform(0, 16, (count, 2))
        boxes = np.concatenate([low, low + generator.uniform(8, 16, (count, 2))], axis=1)
        boxes = np.concatenate([boxes, [[1, 1, 2, 30]]])
        ones = np.ones(len(boxes))
        columns = {name: boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
        columns |= dict.fromkeys(
            ("source", "class_index", "peak_score", "predicted_iou", "stability", "mask_index"), ones
        )
        empty = [np.zeros(0, np.uint8)] * len(boxes)
        values = generator.uniform(0, 1, (len(boxes), 3, 3, 3)).astype(np.float32)
        pools = {"rle": empty} | evidence_pools(ProposalEvidence(np.arange(3), values))
        rows[image_id] = ImageRows(columns, {"image_h": HEIGHT, "image_w": WIDTH}, pools)
    write_table(path, PROPOSALS, gather(PROPOSALS, rows))
    return path
