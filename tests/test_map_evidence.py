"""Map evidence: what maps say of boxes, its way through `proposals.h5`, and what `propose` makes of bad maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.core.artifacts.evidence import ProposalEvidence, evidence_pools, stored_evidence
from stages.core.artifacts.schemas import CAMS, PROPOSALS
from stages.core.artifacts.table import ImageRows, Table, gather, read_table, write_table
from stages.core.errors import SchemaError
from stages.core.ops.map_evidence import map_evidence
from stages.propose.evidence import image_evidence, with_evidence

SIZE = (40, 80)
"""Height and width of the image; its maps have cells of 10 pixels."""


def bump() -> torch.Tensor:
    """A map (1, 4, 8) that is 1 on the two cells from (20, 10) to (40, 20) and 0 elsewhere."""
    maps = torch.zeros(1, 4, 8)
    maps[0, 1, 2:4] = 1.0
    return maps


@pytest.mark.parametrize(
    ("box", "mass", "density", "ring"),
    [
        ((20, 10, 40, 20), 1.0, 1.0, 0.0),  # the object
        ((20, 10, 30, 20), 0.5, 1.0, 0.218),  # a part: dense, but half of the mass is outside
        ((0, 0, 80, 40), 1.0, 1 / 16, 0.0),  # the image: all the mass, thin, and no ring
        ((60, 0, 80, 40), 0.0, 0.0, 0.0),  # elsewhere
        ((25, 10, 35, 20), 0.5, 1.0, 0.435),  # cells count by the fraction that is inside
        ((20, -30, 40, 20), 1.0, 0.5, 0.0),  # what is outside the image does not count
    ],
)
def test_map_evidence__of_boxes(box: tuple[float, ...], mass: float, density: float, ring: float) -> None:
    found = map_evidence(bump(), torch.tensor([box], dtype=torch.float32), SIZE)
    assert found.mass.item() == pytest.approx(mass, abs=1e-5)
    assert found.density.item() == pytest.approx(density, abs=1e-5)
    assert found.ring.item() == pytest.approx(ring, abs=2e-3)


def test_map_evidence__prefers_the_whole_to_part_and_surroundings() -> None:
    boxes = torch.tensor([[20, 10, 30, 20], [20, 10, 40, 20], [10, 0, 50, 30]], dtype=torch.float32)
    assert map_evidence(bump(), boxes, SIZE).f1[0].argmax() == 1


def test_map_evidence__does_not_depend_on_the_scale_of_map_or_grid() -> None:
    boxes = torch.tensor([[3.0, 4.0, 37.0, 21.0]])
    fine = bump().repeat_interleave(3, 1).repeat_interleave(3, 2) * 0.2
    coarse, found = map_evidence(bump(), boxes, SIZE), map_evidence(fine, boxes, SIZE)
    for name in ("mass", "density", "ring"):
        assert torch.allclose(getattr(found, name), getattr(coarse, name), atol=1e-5)


def test_map_evidence__a_map_of_zeros_says_nothing() -> None:
    found = map_evidence(torch.zeros(1, 4, 8), torch.tensor([[0.0, 0.0, 40.0, 40.0]]), SIZE)
    assert found.f1.item() == found.ring.item() == 0.0


def cams_table(maps: dict[tuple[int, int, int], np.ndarray]) -> Table:
    """Maps of image "a" by (class, kind, head)."""
    keys = np.array(list(maps)).reshape(-1, 3)
    grid = np.array([values.shape for values in maps.values()]).reshape(-1, 2)
    columns = {"class_index": keys[:, 0], "kind": keys[:, 1], "head": keys[:, 2], "layer": keys[:, 2]}
    columns |= {"grid_h": grid[:, 0], "grid_w": grid[:, 1]}
    rows = ImageRows(columns, {"image_h": SIZE[0], "image_w": SIZE[1]}, {"values": list(maps.values())})
    return gather(CAMS, {"a": rows})


def proposal_rows(boxes: Sequence[tuple[float, ...]]) -> ImageRows:
    """Proposals without evidence."""
    values = np.array(boxes, np.float32).reshape(-1, 4)
    columns = {name: values[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
    names = ("source", "class_index", "peak_score", "predicted_iou", "stability", "mask_index")
    columns |= {name: np.ones(len(values), np.float32) for name in names}
    masks = {"rle": [np.zeros(0, np.uint8)] * len(values)}
    return ImageRows(columns, {"image_h": SIZE[0], "image_w": SIZE[1]}, masks)


BOXES = [(20.0, 10.0, 40.0, 20.0), (0.0, 0.0, 80.0, 40.0)]


def test_image_evidence__kinds_classes_and_heads() -> None:
    one = bump()[0].numpy()
    cams = cams_table({(5, 0, -1): one, (2, 1, -1): one, (5, 2, 0): one, (5, 2, 1): np.ones((4, 8))})
    found = image_evidence(cams, "a", torch.tensor(BOXES), SIZE)
    assert found.classes.tolist() == [2, 5]
    assert found.values.shape == (2, 2, 3, 3)
    assert found.values[0, 1, 0, :2] == pytest.approx([1, 1])  # coarse of class 5
    assert found.values[0, 0, 1, :2] == pytest.approx([1, 1])  # fine of class 2
    assert np.isnan(found.values[:, 0, [0, 2]]).all()  # class 2 has neither coarse nor cross
    assert found.values[0, 1, 2, 0] == pytest.approx(4 / 34)  # cross: the mean of two heads


@pytest.mark.parametrize("bad", [np.zeros((4, 8)), np.full((4, 8), 0.5), np.full((4, 8), np.nan)])
def test_image_evidence__flat_or_broken_maps_are_nan(bad: np.ndarray) -> None:
    found = image_evidence(cams_table({(5, 1, -1): bad}), "a", torch.tensor(BOXES), SIZE)
    assert np.isnan(found.values).all()


def test_image_evidence__an_image_without_maps() -> None:
    found = image_evidence(cams_table({}), "b", torch.tensor(BOXES), SIZE)
    assert found.classes.tolist() == []
    assert found.values.shape == (2, 0, 3, 3)


def test_evidence__through_the_file(tmp_path: Path) -> None:
    cams = cams_table({(5, 1, -1): bump()[0].numpy(), (7, 0, -1): bump()[0].numpy()})
    rows = {
        "a": with_evidence(proposal_rows(BOXES), cams, "a"),
        "b": with_evidence(proposal_rows(BOXES), cams, "b"),
        "c": with_evidence(proposal_rows([]), cams, "c"),
        "d": with_evidence(proposal_rows(BOXES), None, "d"),
    }
    write_table(tmp_path / "proposals.h5", PROPOSALS, gather(PROPOSALS, rows))
    table = read_table(tmp_path / "proposals.h5", PROPOSALS)
    wanted = image_evidence(cams, "a", torch.tensor(BOXES), SIZE)
    found = stored_evidence(table, "a")
    assert found.classes.tolist() == [5, 7]
    assert np.allclose(found.values, wanted.values, atol=1e-3, equal_nan=True)
    for image_id, boxes in (("b", 2), ("c", 0), ("d", 2)):
        assert stored_evidence(table, image_id).values.shape == (boxes, 0, 3, 3)


def test_stored_evidence__that_does_not_fit_its_classes() -> None:
    rows = proposal_rows(BOXES)
    rows.pools |= evidence_pools(ProposalEvidence(np.array([3]), np.zeros((2, 1, 3, 3), np.float32)))
    rows.pools["evidence_class"][1] = np.array([4], np.int32)
    table = gather(PROPOSALS, {"a": rows})
    with pytest.raises(SchemaError, match="does not fit"):
        stored_evidence(table, "a")
