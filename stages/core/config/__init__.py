"""Settings: one strict, frozen pydantic model per stage, and the order in which its values are found.

Precedence, lowest first: default < recipe < ``--config`` file < ``WEAKSAM_<STAGE>__<KEY>`` < ``--set`` < flag.
``model`` has the base classes, ``values`` the grammar of values, ``sources`` reads recipes, files, the environment
and ``--set``, ``building`` merges them and says what is wrong, ``renamed`` lists the old names of settings.
"""

from stages.core.config.building import build_config
from stages.core.config.model import OnlyWith, Settings, StageConfig, config_class
from stages.core.config.sources import (
    Section,
    environment_section,
    load_config_file,
    load_recipe,
    merged,
    parse_assignments,
    recipe_layers,
    recipe_names,
)

__all__ = [
    "OnlyWith",
    "Section",
    "Settings",
    "StageConfig",
    "build_config",
    "config_class",
    "environment_section",
    "load_config_file",
    "load_recipe",
    "merged",
    "parse_assignments",
    "recipe_layers",
    "recipe_names",
]
