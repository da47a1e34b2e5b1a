"""weaksam from Python: open runs, splits and detectors, read every artifact as arrays, run stages.

    import weaksam

    run = weaksam.open_run("runs/demo")
    image_id = run.train.ids[0]
    boxes = run.train.pseudo_boxes(image_id).boxes_xyxy

Nothing here prints or ends the process: what is wrong is raised as a subclass of :class:`WeakSamError`, and messages go
to the logger ``weaksam``. Importing it costs no torch. The page ``docs/python-api.md`` shows it all.
"""

import logging

from stages.core.artifacts.schemas import MAP_KINDS, SOURCE_BITS
from stages.core.config import StageConfig
from stages.core.datasets.images import load_image
from stages.core.errors import (
    ConfigError,
    EnvironmentFault,
    ImageError,
    InputError,
    MissingInputError,
    OutputExistsError,
    SchemaError,
    StaleInputError,
    TooManyFailuresError,
    TrainingDivergedError,
    UsageError,
    WeakSamError,
)
from stages.core.runtime.environment import package_version
from stages.core.structures.detections import Detections
from weaksam.detectors import TrainedDetector, open_detector
from weaksam.pictures import draw_detections, draw_map, draw_points
from weaksam.rows import ClassMaps, Prompts, Proposals, decode_masks
from weaksam.running import run_stage, stage_config
from weaksam.runs import Run, StageResult, open_run
from weaksam.splits import SplitArtifacts, list_splits, open_split

__all__ = [
    "MAP_KINDS",
    "SOURCE_BITS",
    "ClassMaps",
    "ConfigError",
    "Detections",
    "EnvironmentFault",
    "ImageError",
    "InputError",
    "MissingInputError",
    "OutputExistsError",
    "Prompts",
    "Proposals",
    "Run",
    "SchemaError",
    "SplitArtifacts",
    "StageConfig",
    "StageResult",
    "StaleInputError",
    "TooManyFailuresError",
    "TrainedDetector",
    "TrainingDivergedError",
    "UsageError",
    "WeakSamError",
    "decode_masks",
    "draw_detections",
    "draw_map",
    "draw_points",
    "list_splits",
    "load_image",
    "open_detector",
    "open_run",
    "open_split",
    "run_stage",
    "stage_config",
]
__version__ = package_version()

# A library leaves it to its user where messages go; without this, Python would print warnings by itself.
logging.getLogger("weaksam").addHandler(logging.NullHandler())
