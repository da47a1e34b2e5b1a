"""Settings: layers, precedence, and messages that name the key and where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, create_model, model_validator

from stages.core.config import (
    OnlyWith,
    Settings,
    StageConfig,
    build_config,
    config_class,
    environment_section,
    load_config_file,
    load_recipe,
    parse_assignments,
)
from stages.core.config.model import setting_fields
from stages.core.config.renamed import RENAMED
from stages.core.config.values import format_value, item_range, range_words, read_value, type_words
from stages.core.errors import ConfigError, MissingInputError, did_you_mean
from stages.core.registry import CHAIN


class ToyConfig(StageConfig):
    epochs: int = Field(3, description="Passes over the images.", ge=1, le=100)
    scales: tuple[float, ...] = Field((1.0,), description="Scale factors.")
    name: str = Field("a", description="Name.")


Layers = list[tuple[str, dict[str, Any]]]


class DetrGroup(Settings):
    num_queries: int = Field(60, description="Boxes.", ge=1)
    heads: int = Field(8, description="Heads.", ge=1)
    denoising: bool = Field(True, description="Noisy targets.")


class AnchorGroup(Settings):
    sizes: tuple[int, ...] = Field((32, 64), description="Sides.", min_length=1)


class DetectorConfig(StageConfig):
    architecture: Literal["faster-rcnn", "rt-detr"] = Field("faster-rcnn", description="Detector.")
    anchors: Annotated[AnchorGroup, OnlyWith("architecture", ("faster-rcnn",))] = AnchorGroup()
    detr: Annotated[DetrGroup, OnlyWith("architecture", ("rt-detr",))] = DetrGroup(heads=4)
    drop: Literal["off", "paper"] = Field("paper", description="Rule.")


GRAMMAR: list[tuple[Any, Any, Any]] = [
    (str, "off", "off"),  # text is never reinterpreted
    (str, "0123", "0123"),
    (str, "1e-3", "1e-3"),
    (str, "null", "null"),
    (str, " padded ", " padded "),
    (str, "a,b", "a,b"),
    (Literal["off", "paper"], "off", "off"),
    (Literal[0, 1, 2], "1", 1),
    (Path, "no", "no"),
    (int, "0123", 123),
    (float, "1e-3", 1e-3),
    (float, "3", 3.0),
    (bool, "off", False),
    (bool, "Yes", True),
    (bool, "1", True),
    (int | None, "none", None),
    (int | None, "7", 7),
    (str | None, "", None),
    (str | None, "null", None),
    (str | None, "no", "no"),
    (int | Literal["auto"], "auto", "auto"),
    (int | Literal["auto"], "3", 3),
    (tuple[int, ...], "480,576", [480, 576]),
    (tuple[int, ...], "[480, 576]", [480, 576]),
    (tuple[int, ...], "480", [480]),
    (tuple[int, ...], "480,", [480]),
    (tuple[int, ...], "[]", []),
    (tuple[int, ...], "", []),
    (tuple[float, ...], "1e-3, 2", [1e-3, 2.0]),
    (tuple[str, ...], "dining table,no", ["dining table", "no"]),
    (tuple[str, ...], '"a, b",c', ["a, b", "c"]),
    (tuple[str, ...], "['a', \"b\"]", ["a", "b"]),
    (tuple[Literal[0, 1, 2], ...], "0,2", [0, 2]),
    (tuple[str, ...] | None, "none", None),
    (Annotated[int, Field(ge=1)], "4", 4),
    (int, "many", "many"),  # refused later, with the setting's name
    (bool, "maybe", "maybe"),
    (int, 3, 3),  # what is no text needs no reading
    (tuple[float, ...], [1, "2"], [1, 2.0]),
]


@pytest.mark.parametrize(("annotation", "text", "expected"), GRAMMAR)
def test_read_value__the_type_decides(annotation: Any, text: str, expected: Any) -> None:
    found = read_value(text, annotation)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (bool, True),
        (int | None, None),
        (float, 1e-05),
        (tuple[str, ...], ["a, b", "c d", "", "e'f", '"f"', "[g]"]),
        (tuple[float, ...], [0.1, 2.0]),
        (tuple[int, ...], []),
    ],
)
def test_format_value__is_read_back(annotation: Any, value: Any) -> None:
    assert read_value(format_value(value), annotation) == value


@pytest.mark.parametrize("way", ["flag", "--set", "environment", "YAML", "YAML list"])
def test_build_config__one_grammar_in_every_source(way: str, tmp_path: Path) -> None:
    section: dict[str, Any] = {"scales": "0.5,1e-1", "name": "off"}
    if way == "--set":
        section = parse_assignments(["scales=[0.5, 1e-1]", "name=off"], "cam")
    elif way == "environment":
        section = environment_section("cam", {"WEAKSAM_CAM__SCALES": "0.5,1e-1", "WEAKSAM_CAM__NAME": "off"})
    elif way.startswith("YAML"):
        scales = "[0.5, 1e-1]" if way == "YAML list" else "0.5,1e-1"
        (tmp_path / "c.yaml").write_text(f"cam:\n  scales: {scales}\n  name: off\n")
        section = load_config_file(tmp_path / "c.yaml")["cam"]
    config = build_config(ToyConfig, [("here", section)])
    assert (config.scales, config.name) == ((0.5, 0.1), "off")


def test_load_config_file__empty_sections_and_merge_keys(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("cam: &shared {epochs: 3}\nwsod:\n  <<: *shared\n  drop: no\npgt:\n")
    assert load_config_file(path) == {
        "cam": {"epochs": "3"},
        "wsod": {"epochs": "3", "drop": "no"},
        "pgt": {},
    }


@pytest.mark.parametrize(
    ("annotation", "field", "expected"),
    [
        (int, Field(ge=1), "an integer >= 1"),
        (int, Field(ge=0, le=10_000), "an integer in [0, 10000]"),
        (float, Field(gt=0, le=1), "a number in (0, 1]"),
        (float, Field(lt=0.5), "a number < 0.5"),
        (float | None, Field(gt=0), "a number > 0, or none"),
        (str, Field(), "text"),
        (bool, Field(), "true or false"),
        (Literal["a", "b", "c"], Field(), "a, b or c"),
        (tuple[int, ...], Field(min_length=1), "a list of integers with at least 1 item"),
        (tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(), "a list of numbers in [0, 1]"),
        (tuple[Literal["x", "y"], ...], Field(), "a list out of x, y"),
        (int | Literal["auto"], Field(ge=0), "an integer >= 0 or auto"),
    ],
)
def test_type_words(annotation: Any, field: Any, expected: str) -> None:
    model = create_model("Model", value=(annotation, field))
    assert type_words(model.model_fields["value"]) == expected


def test_range_words__nothing_to_say() -> None:
    assert range_words([]) == ""


def test_item_range__of_lists_alone() -> None:
    assert item_range(tuple[Annotated[float, Field(gt=0, le=1)], ...]) == "in (0, 1]"
    assert item_range(tuple[int, ...]) == item_range(int) == ""


def test_groups__layers_merge_deep_and_keep_the_fields_own_defaults() -> None:
    layers: Layers = [
        ("recipe r", {"architecture": "rt-detr", "detr": {"num_queries": "9", "denoising": "no"}}),
        ("--set", {"detr": {"num_queries": "11"}}),
    ]
    config = build_config(DetectorConfig, layers)
    assert config.detr == DetrGroup(num_queries=11, heads=4, denoising=False)
    assert DetectorConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("architecture", "shown", "hidden"),
    [("faster-rcnn", "anchors", "detr"), ("rt-detr", "detr", "anchors")],
)
def test_groups__inactive_ones_are_neither_dumped_nor_named(
    architecture: str, shown: str, hidden: str
) -> None:
    config = build_config(DetectorConfig, [("--set", {"architecture": architecture})])
    names = {name.partition(".")[0] for name, _ in config.named_values()}
    assert set(config.model_dump()) == set(json.loads(config.model_dump_json())) == names
    assert shown in names
    assert hidden not in names


def test_groups__inactive_ones_are_refused_beside_the_choice() -> None:
    for layers in (
        [("--set", {"detr": {"heads": "2"}})],
        [("my.yaml", {"architecture": "faster-rcnn", "detr": {"heads": "2"}})],
    ):
        with pytest.raises(ConfigError) as caught:
            build_config(DetectorConfig, layers)
        message = str(caught.value)
        assert "'detr.heads' from" in message
        assert "belongs to architecture rt-detr, but architecture is faster-rcnn" in message
    with pytest.raises(ValidationError, match="detr belongs to architecture rt-detr"):
        DetectorConfig(detr=DetrGroup())


def test_marks__a_setting_may_need_two_choices() -> None:
    for layers, words in (
        ([("--set", {"kept": "no", "temperature": "2"})], "belongs to rule soft"),
        ([("--set", {"rule": "soft", "kept": "no", "temperature": "2"})], "belongs to kept true"),
        ([("--set", {"temperature": "2"})], "belongs to rule soft"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_config(TwoMarksConfig, layers)
    config = build_config(TwoMarksConfig, [("a", {"rule": "soft", "temperature": "2"})])
    assert dict(config.named_values()) == {"rule": "soft", "kept": True, "temperature": 2.0}
    higher: Layers = [("a", {"rule": "soft", "temperature": "2"}), ("b", {"rule": "hard", "kept": "no"})]
    assert dict(build_config(TwoMarksConfig, higher).named_values()) == {"rule": "hard", "kept": False}


def test_build_config__a_groups_own_check_names_group_and_layer() -> None:
    with pytest.raises(ConfigError, match=r"'odd' from my\.yaml: width must be even"):
        build_config(OddConfig, [("r", {"odd": {"width": "4"}}), ("my.yaml", {"odd": {"width": "3"}})])


class OddGroup(Settings):
    width: int = 2

    @model_validator(mode="after")
    def _even(self) -> OddGroup:
        if self.width % 2:
            raise ValueError("width must be even")
        return self


class OddConfig(StageConfig):
    odd: OddGroup = OddGroup()


class TwoMarksConfig(StageConfig):
    rule: Literal["hard", "soft"] = "hard"
    kept: bool = True
    temperature: Annotated[float, OnlyWith("rule", ("soft",)), OnlyWith("kept", (True,))] = 1.0


def test_groups__a_higher_choice_lets_go_of_the_other_choices_settings() -> None:
    layers: Layers = [("recipe r", {"anchors": {"sizes": "16"}}), ("--set", {"architecture": "rt-detr"})]
    config = build_config(DetectorConfig, layers)
    assert config == DetectorConfig(architecture="rt-detr")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"detr": {"num_querys": 3}}, "'detr.num_querys' from --set: unknown setting|'detr.num_queries'"),
        ({"num_queries": 3}, "did you mean 'detr.num_queries'"),
        ({"drop": {"x": 3}}, "'drop' is a single setting: off or paper"),
        ({"wsdo": {"epochs": 3}}, "did you mean 'wsod.epochs'"),
        ({"anchors": "3"}, "expected a group of settings (sizes), got '3'|--set anchors.sizes=32,64"),
        ({"anchors": {"sizes": "a"}}, "'anchors.sizes' from --set: expected a list of integers"),
        (
            {"anchors": {"sizes": "[]"}},
            "with at least 1 item, got '[]'|write for example --set anchors.sizes",
        ),
        ({"drop": "papr"}, "expected off or paper, got 'papr'|did you mean 'paper'"),
        ({"drop": "x", "anchors": {"sizes": "a,b"}}, "2 settings are wrong"),  # all at once, each once
    ],
)
def test_build_config__says_what_is_wrong(section: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(DetectorConfig, [("--set", section)])
    for words in expected.split("|"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("the command line", "--detr.num-queries 60"),
        ("--set", "--set detr.num_queries=60"),
        ("the environment", "WEAKSAM_DETECTOR__DETR__NUM_QUERIES=60"),
        ("my.yaml", "detr: {num_queries: 60}"),
    ],
)
def test_build_config__shows_how_to_write_it_there(layer: str, expected: str) -> None:
    layers: Layers = [("a", {"architecture": "rt-detr"}), (layer, {"detr": {"num_queries": "0"}})]
    with pytest.raises(ConfigError) as caught:
        build_config(DetectorConfig, layers)
    assert f"write for example {expected}" in str(caught.value)


def test_build_config__old_names_say_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        RENAMED, "detector", {"queries": "detr.num_queries", "rate": "lr: a multiple, no rate"}
    )
    for old, words in (("queries", "renamed to 'detr.num_queries'"), ("rate", "'lr', a multiple, no rate")):
        with pytest.raises(ConfigError) as caught:
            build_config(DetectorConfig, [("my.yaml", {old: "3"})])
        assert f"'{old}' from my.yaml" in str(caught.value)
        assert words in str(caught.value)


@pytest.mark.parametrize("stage", CHAIN)
def test_renamed__new_names_exist_and_old_ones_do_not(stage: str) -> None:
    model = config_class(stage)
    names = {".".join(path) for path, _ in setting_fields(model)}
    for old, new in RENAMED.get(stage, {}).items():
        assert old not in names
        assert new.partition(":")[0].strip() in names


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
        ({"epochs": 0}, "expected an integer in [1, 100], got '0'"),  # out of range
        ({"epochs": "many"}, "expected an integer in [1, 100], got 'many'"),  # wrong type
        ({"scales": 3}, "expected a list of numbers, got '3'"),
        ({"scales": [float("nan")]}, "expected a list of numbers, got 'nan'"),
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
        (["epochs=4"], {"epochs": "4"}),
        (["wsod.epochs=4", "cam.epochs=9"], {"epochs": "4"}),  # other stages' settings are skipped
        (["wsod.min-side=1.5"], {"min_side": "1.5"}),
        (["scales=[1.0, 0.8]"], {"scales": "[1.0, 0.8]"}),
        (["name=a=b"], {"name": "a=b"}),  # the first = is ours
        (
            ["detr.heads=2", "wsod.detr.layers=3", "cam.detr.layers=9"],
            {"detr": {"heads": "2", "layers": "3"}},
        ),
    ],
)
def test_parse_assignments__values_stay_text(assignments: list[str], expected: dict[str, Any]) -> None:
    assert parse_assignments(assignments, "wsod") == expected


@pytest.mark.parametrize("assignment", ["epochs", "=3", ".epochs=3", "detr.=3"])
def test_parse_assignments__malformed(assignment: str) -> None:
    with pytest.raises(ConfigError):
        parse_assignments([assignment], "wsod")


def test_environment_section__takes_own_stage_only() -> None:
    environ = {
        "WEAKSAM_WSOD__EPOCHS": "4",
        "WEAKSAM_WSOD__DETR__NUM_HEADS": "8",
        "WEAKSAM_CAM__EPOCHS": "9",
        "WEAKSAM_DATA": "/x",
    }
    assert environment_section("wsod", environ) == {"epochs": "4", "detr": {"num_heads": "8"}}


def test_environment_section__unknown_stage() -> None:
    with pytest.raises(ConfigError, match=r"WEAKSAM_WSDO__EPOCHS: unknown stage 'wsdo'(.|\n)*'wsod'"):
        environment_section("cam", {"WEAKSAM_WSDO__EPOCHS": "4"})


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
