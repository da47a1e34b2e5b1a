"""`prompt`: peak points of every map (Algorithm 1), cross-attention peaks thinned to a few."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.core.artifacts.schemas import CAMS, MAP_KINDS, PROMPTS
from stages.core.artifacts.table import ImageRows, read_split_table, read_table, write_table
from stages.core.errors import SchemaError
from stages.core.runtime.parts import ImageFunction, map_images
from stages.core.spec import Counts, Plan, StageContext
from stages.prompt.config import PromptConfig
from stages.prompt.spec import PROMPTS_FILE, SPEC


class PromptStage:
    """The `prompt` stage; see `stages.core.spec.Stage`."""

    spec = SPEC

    def plan(self, config: PromptConfig, context: StageContext) -> Plan:
        """Check that the maps belong to this split."""
        table = read_split_table(context.input("cams"), CAMS, context.split.name, context.split.ids)
        return Plan(
            len(context.split.ids), (f"{table.num_rows} maps, peaks at {config.resolution} resolution",)
        )

    def run(self, config: PromptConfig, context: StageContext) -> Counts:
        """Write `prompts.h5`; images that have no maps (failed before) are recorded as failures."""
        read_split_table(context.input("cams"), CAMS, context.split.name, context.split.ids)
        factory = _Factory(config, context.input("cams"), context.seed)
        table = map_images(context, PROMPTS, factory, "points")
        if table is None:
            return {}
        write_table(context.out / PROMPTS_FILE, PROMPTS, table)
        counts: Counts = {"points": table.num_rows}
        for index, kind in enumerate(MAP_KINDS):
            count = int(np.sum(table.columns["source"] == index))
            counts[f"{kind}_points_per_image"] = round(count / max(len(table.ids), 1), 3)
        counts["images_without_points"] = int(np.sum(np.diff(table.offsets) == 0))
        context.metrics(counts)
        return counts


@dataclass(frozen=True)
class _Factory:
    """Builds the function per image inside a worker process; picklable."""

    config: PromptConfig
    cams: Path
    seed: int

    def __call__(self) -> ImageFunction:
        from stages.prompt.points import image_points

        table = read_table(self.cams, CAMS)

        def points_of(image_id: str) -> ImageRows:
            if image_id not in table:
                raise SchemaError(f"no maps of image '{image_id}' (it failed in cam)", where=self.cams.name)
            return image_points(table, image_id, self.config, self.seed)

        return points_of


STAGE = PromptStage()
