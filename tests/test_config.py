"""Settings: layers, precedence, and messages that name the key and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from stages.core.config import (
    StageConfig,
    build_config,
    environment_section,
    load_config_file,
    load_recipe,
    parse_assignments,
)
from stages.core.errors import ConfigError, MissingInputError, did_you_mean


class ToyConfig(StageConfig):
    epochs: int = Field(3, description="Passes over the images.", ge=1, le=100)
    scales: tuple[float, ...] = Field((1.0,), description="Scale factors.")
    name: str = Field("a", description="Name.")


def test_build_config__later_layers_win() -> None:
    config = build_config(ToyConfig, [("recipe r", {"epochs": 5, "name": "b"}), ("--set", {"epochs": 7})])
    assert (config.epochs, config.name, config.scales) == (7, "b", (1.0,))


def test_build_config__unknown_key_names_layer_and_close_match() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(ToyConfig, [("my.yaml", {"epoch": 5})])
    assert "my.yaml" in str(caught.value)
    assert "did you mean 'epochs'" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"epochs": 0}, "greater than or equal to 1"),  # out of range
        ({"epochs": "many"}, "valid integer"),  # wrong type
        ({"scales": 3}, "valid tuple"),
        ({"scales": [float("nan")]}, "finite"),
    ],
)
def test_build_config__bad_value_names_key_and_origin(section: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(ToyConfig, [("--set", section)])
    assert expected in str(caught.value)
    assert "from --set" in str(caught.value)


def test_stage_config__is_frozen() -> None:
    with pytest.raises(ValidationError):
        ToyConfig().epochs = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["epochs=4"], {"epochs": 4}),
        (["wsod.epochs=4", "cam.epochs=9"], {"epochs": 4}),  # other stages' settings are passed over
        (["wsod.min-side=1.5"], {"min_side": 1.5}),
        (["scales=[1.0, 0.8]"], {"scales": [1.0, 0.8]}),
    ],
)
def test_parse_assignments__values_are_yaml(assignments: list[str], expected: dict[str, Any]) -> None:
    assert parse_assignments(assignments, "wsod") == expected


@pytest.mark.parametrize("assignment", ["epochs", "=3", "wsdo.epochs=3"])
def test_parse_assignments__malformed(assignment: str) -> None:
    with pytest.raises(ConfigError):
        parse_assignments([assignment], "wsod")


def test_environment_section__takes_own_stage_only() -> None:
    environ = {"WEAKSAM_WSOD__EPOCHS": "4", "WEAKSAM_CAM__EPOCHS": "9", "WEAKSAM_DATA": "/x"}
    assert environment_section("wsod", environ) == {"epochs": 4}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wsdo: {epochs: 3}", "did you mean 'wsod'"),
        ("[1, 2]", "mapping"),
        ("wsod: 3", "must be a mapping"),
        ("wsod: {", "not valid YAML"),
    ],
)
def test_load_config_file__malformed(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config_file(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_load_config_file__missing(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        load_config_file(tmp_path / "none.yaml")


def test_load_recipe__unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("shapez")
    assert "shapes" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("shapes_tran", ["shapes_train", "shapes_test"], "did you mean 'shapes_train'"),
        ("zzz", ["a", "b"], "available: a, b"),
        ("zzz", [], "nothing is available"),
    ],
)
def test_did_you_mean__close_or_listed(name: str, options: list[str], expected: str) -> None:
    assert expected in did_you_mean(name, options)
