"""The proposal stage: ``prompts.h5`` and images in, ``proposals.h5`` out, one map over the images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.core.artifacts.schemas import CAMS, PROMPTS, PROPOSALS, SOURCE_BITS
from stages.core.artifacts.table import ImageRows, Table, read_split_table, read_table, write_table
from stages.core.errors import ConfigError, StaleInputError
from stages.core.runtime.device import Precision
from stages.core.runtime.parts import ImageFunction, map_images
from stages.core.spec import Counts, Plan, StageContext
from stages.core.weights.cache import require_weights
from stages.propose.config import ProposeConfig
from stages.propose.prompting import valid_points
from stages.propose.spec import PROPOSALS_FILE, SPEC

if TYPE_CHECKING:
    from stages.core.segmenters.protocol import Segmenter

IMAGES_AHEAD = 2
"""Images decoded in advance on a GPU."""


class ProposeStage:
    """The `propose` stage; see `stages.core.spec.Stage`."""

    spec = SPEC

    def plan(self, config: ProposeConfig, context: StageContext) -> Plan:
        """Check that the prompts belong to this split and say how many there are.

        Raises:
            ConfigError: no such segmenter.
            EnvironmentFault: its weights or its library are not there.
            StaleInputError: no image of the split is among the prompts.
        """
        table = read_split_table(context.input("prompts"), PROMPTS, context.split.name, context.split.ids)
        known = sum(image_id in table for image_id in context.split.ids)
        points = sum(table.count(i) for i in context.split.ids)
        notes = (
            f"{config.segmenter}: {config.points_per_side**2} grid and {points / max(known, 1):.1f} peak points"
            " per image",
            f"{len(context.split.ids) - known} images without prompts get the grid alone",
        )
        require_weights(config.segmenter, config.segmenter_weights)
        return Plan(len(context.split.ids), notes)

    def run(self, config: ProposeConfig, context: StageContext) -> Counts:
        """Write ``proposals.h5``; while other shards are at work, only this shard's parts.

        Raises:
            StaleInputError: no image of the split is among the prompts.
        """
        prompts = read_split_table(context.input("prompts"), PROMPTS, context.split.name, context.split.ids)
        factory = _Factory(
            config, context.input("prompts"), context.inputs.get("cams"), context.device, context.precision,
            context.split.ids, {i: context.split.image_path(i) for i in context.split.ids},
        )  # fmt: skip
        table = map_images(context, PROPOSALS, factory, "images", {"segmenter": config.segmenter})
        if table is None:
            return {}
        negatives = {i for i in context.split.ids if context.split.has_tags and not context.split.tags(i)}
        for image_id in table.ids:
            # A negative without proposals has nothing to teach, and nothing is wrong with it.
            if not table.count(image_id) and image_id not in negatives:
                context.failures.record(
                    image_id, "no proposal passed the filters; the image keeps an empty entry"
                )
        write_table(context.out / PROPOSALS_FILE, PROPOSALS, table)
        counts = _count(table) | {"prompts_dropped": _unusable(prompts, context)}
        if counts["prompts_dropped"]:
            context.log.warning("dropped %d prompts outside their image", counts["prompts_dropped"])
        context.metrics(counts)
        return counts


@dataclass(frozen=True)
class _Factory:
    """Builds the function per image inside a worker process; picklable."""

    config: ProposeConfig
    prompts: Path
    cams: Path | None
    device: str
    precision: Precision
    ids: tuple[str, ...]
    paths: dict[str, Path]

    def __call__(self) -> ImageFunction:
        from stages.core.datasets.images import load_image
        from stages.core.segmenters.loading import load_segmenter
        from stages.propose.evidence import with_evidence
        from stages.propose.prefetch import Prefetcher
        from stages.propose.proposer import Proposer

        config = self.config
        weights = Path(config.segmenter_weights) if config.segmenter_weights else None
        segmenter = load_segmenter(config.segmenter, weights, self.device)
        if config.compile:
            _compile(segmenter)
        proposer = Proposer(segmenter, config, self.device, self.precision, logging.getLogger("weaksam"))
        table = read_table(self.prompts, PROMPTS)
        cams = None if self.cams is None else read_table(self.cams, CAMS)
        # On a CPU the cores are taken by one process each; a second thread would only disturb them.
        ahead = IMAGES_AHEAD if self.device.startswith("cuda") else 0
        images = Prefetcher(self.ids, lambda image_id: load_image(self.paths[image_id]), ahead)

        def propose_one(image_id: str) -> ImageRows:
            image = images.get(image_id)
            _check_size(table, image_id, (image.shape[0], image.shape[1]), self.prompts)
            found = proposer.propose(image, table.rows(image_id))
            return with_evidence(found, cams, image_id, self.device)

        return propose_one


def _compile(segmenter: Segmenter) -> None:
    compile_encoder = getattr(segmenter, "compile", None)
    if compile_encoder is None:
        raise ConfigError(
            f"{segmenter.name} cannot be compiled", where="compile", hint="leave out --set compile=true"
        )
    compile_encoder()


def _check_size(table: Table, image_id: str, size: tuple[int, int], where: Path) -> None:
    if image_id not in table:
        return
    known = table.image_row(image_id)
    if (known["image_h"], known["image_w"]) != size:
        raise StaleInputError(
            f"the prompts of image '{image_id}' were made on {known['image_w']}x{known['image_h']} pixels, "
            f"the image now has {size[1]}x{size[0]}",
            where=where.name, hint="run cam and prompt again",
        )  # fmt: skip


def _unusable(table: Table, context: StageContext) -> int:
    """Prompts of the split's images that no prompt could be made of."""
    count = 0
    for image_id in context.split.ids:
        if image_id in table:
            size = table.image_row(image_id)
            count += int(np.sum(~valid_points(table.rows(image_id), size["image_h"], size["image_w"])))
    return count


def _count(table: Table) -> Counts:
    source = table.columns["source"]
    per_image = table.num_rows / max(len(table.ids), 1)
    counts: Counts = {"proposals": table.num_rows, "proposals_per_image": round(per_image, 2)}
    for name, bit in SOURCE_BITS.items():
        counts[f"found_by_{name}"] = int(np.sum((source & bit) != 0))
    return counts


STAGE = ProposeStage()
