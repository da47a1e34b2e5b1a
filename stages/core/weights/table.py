"""The table of published weights: name, origin, size, checksum and licence; and how a user adds to it.

A *file* is fetched from its URL into the cache of this project, a *hub* entry is a repository that
``huggingface_hub`` keeps in its own cache. Names are the names of segmenters (``propose.segmenter``).

SHA-256 and sizes of the segment-anything files are those that several public projects record independently of
one another (among them micro-sam and 3D Slicer). The six digits in the published file names begin the *MD5* of
each file, not its SHA-256; they are kept as ``md5_prefix`` and checked, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from stages.core.errors import ConfigError, InputError, did_you_mean

EMBEDDED: Final = Path(__file__).resolve().parents[1] / "embedded"
"""Folder of the weights that come with the package."""
TABLE_VARIABLE: Final = "WEAKSAM_WEIGHTS"
"""Names a YAML file of entries that are added to the table or override its fields."""
MIRROR_VARIABLE: Final = "WEAKSAM_WEIGHTS_URL"
"""Replaces the folder part of every file's URL."""


@dataclass(frozen=True)
class Weights:
    """One line of the table.

    Attributes:
        name: Segmenter name.
        licence: SPDX identifier of the weights' licence.
        source: Who published them, as a citation.
        url: Where the file is; empty for a hub entry.
        hub: ``owner/name`` of the hub repository; empty for a file.
        shipped: Name of the file in ``EMBEDDED``, if the weights come with the package; else empty.
        revision: Hub revision, a branch or commit.
        size: Bytes; None if unknown. Of a hub entry the approximate sum, for display only.
        sha256: Hex digest; empty if unknown, then only size, MD5 prefix and architecture can be checked.
        md5_prefix: First hex digits of the MD5 digest, as in the published file names.
        architecture: Segmenter name whose architecture the file has; usually ``name`` itself.
    """

    name: str
    licence: str = "unknown"
    source: str = ""
    url: str = ""
    hub: str = ""
    shipped: str = ""
    revision: str = "main"
    size: int | None = None
    sha256: str = ""
    md5_prefix: str = ""
    architecture: str = ""

    @property
    def file_name(self) -> str:
        """Last part of the URL: the name in the cache."""
        return self.url.rpartition("/")[2]

    @property
    def kind(self) -> str:
        """The architecture, by its segmenter name."""
        return self.architecture or self.name


_SAM: Final = "Kirillov et al. 2023, Segment Anything"
_SAM2: Final = "Ravi et al. 2024, SAM 2"
_HQ: Final = "Ke et al. 2023, HQ-SAM"
_META: Final = "https://dl.fbaipublicfiles.com/segment_anything/"


def _sam(name: str, file: str, size: int, sha256: str, md5_prefix: str) -> Weights:
    return Weights(
        name, "Apache-2.0", _SAM, url=_META + file, size=size, sha256=sha256, md5_prefix=md5_prefix
    )


def _hub(name: str, hub: str, source: str, megabytes: int) -> Weights:
    return Weights(name, "Apache-2.0", source, hub=hub, size=megabytes * 10**6)


SHIPPED: Final[tuple[Weights, ...]] = (
    Weights("sam-nano", "Apache-2.0", "this project, trained on drawn scenes", shipped="sam_nano.safetensors",
            size=8_729_464),
    Weights("sam-nano-photo", "Apache-2.0", "this project, trained on photos of VOC 2012 and drawn scenes",
            shipped="sam_nano_photo.safetensors", size=8_729_680, architecture="sam-nano"),
)  # fmt: skip
PUBLISHED: Final[tuple[Weights, ...]] = (
    _sam("sam-vit-b", "sam_vit_b_01ec64.pth", 375_042_383,
         "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", "01ec64"),
    _sam("sam-vit-l", "sam_vit_l_0b3195.pth", 1_249_524_607,
         "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", "0b3195"),
    _sam("sam-vit-h", "sam_vit_h_4b8939.pth", 2_564_550_879,
         "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", "4b8939"),
    _hub("sam2-hiera-tiny", "facebook/sam2-hiera-tiny", _SAM2, 156),
    _hub("sam2-hiera-small", "facebook/sam2-hiera-small", _SAM2, 184),
    _hub("sam2-hiera-base-plus", "facebook/sam2-hiera-base-plus", _SAM2, 323),
    _hub("sam2-hiera-large", "facebook/sam2-hiera-large", _SAM2, 898),
    _hub("sam2.1-hiera-tiny", "facebook/sam2.1-hiera-tiny", _SAM2, 156),
    _hub("sam2.1-hiera-small", "facebook/sam2.1-hiera-small", _SAM2, 184),
    _hub("sam2.1-hiera-base-plus", "facebook/sam2.1-hiera-base-plus", _SAM2, 324),
    _hub("sam2.1-hiera-large", "facebook/sam2.1-hiera-large", _SAM2, 898),
    _hub("hq-sam-vit-b", "syscv-community/sam-hq-vit-base", _HQ, 380),
    _hub("hq-sam-vit-l", "syscv-community/sam-hq-vit-large", _HQ, 1254),
    _hub("hq-sam-vit-h", "syscv-community/sam-hq-vit-huge", _HQ, 2571),
    _hub("edgetam", "yonigozlan/EdgeTAM-hf", "Zhou et al. 2025, EdgeTAM", 56),
    _hub("hf-sam-vit-b", "facebook/sam-vit-base", _SAM, 375),
    _hub("hf-sam-vit-l", "facebook/sam-vit-large", _SAM, 1250),
    _hub("hf-sam-vit-h", "facebook/sam-vit-huge", _SAM, 2564),
)  # fmt: skip

_EDITABLE: Final = (
    "licence",
    "source",
    "url",
    "hub",
    "revision",
    "size",
    "sha256",
    "md5_prefix",
    "architecture",
)


def weights_table(environ: Mapping[str, str] | None = None) -> dict[str, Weights]:
    """Shipped and published weights with the user's additions and mirror applied, by name.

    Args:
        environ: Environment; default that of the process.

    Raises:
        MissingInputError: the user's file cannot be read.
        ConfigError: it holds an unknown field, a wrong type, or an entry without a place to fetch it from.
    """
    environ = os.environ if environ is None else environ
    table = {entry.name: entry for entry in (*SHIPPED, *PUBLISHED)}
    own: set[str] = set()
    if path := environ.get(TABLE_VARIABLE):
        for name, fields in _read_entries(Path(path)).items():
            table[name] = _edited(table.get(name), name, fields, path)
            if "url" in fields:
                own.add(name)
    if mirror := environ.get(MIRROR_VARIABLE):
        # A URL that the user wrote down wins over the mirror of everything.
        for name, entry in table.items():
            if entry.url and name not in own:
                table[name] = replace(entry, url=f"{mirror.rstrip('/')}/{entry.file_name}")
    return table


def find_weights(name: str, environ: Mapping[str, str] | None = None) -> Weights:
    """The entry of a name.

    Raises:
        ConfigError: no such entry; the message lists close matches.
    """
    table = weights_table(environ)
    if name not in table:
        raise ConfigError(f"no weights are called '{name}'", where="weights", hint=did_you_mean(name, table))
    return table[name]


def segmenter_kind(name: str) -> str:
    """The architecture behind a segmenter's name: the name itself, but for weights that a user added.

    Raises:
        ConfigError: unknown name.
    """
    table = weights_table()
    if name not in table:
        raise ConfigError(f"unknown segmenter '{name}'", where="segmenter", hint=did_you_mean(name, table))
    return table[name].kind


def _read_entries(path: Path) -> dict[str, dict[str, Any]]:
    from stages.core.text_files import parse_yaml, read_text

    try:
        text = read_text(path, kind=ConfigError)
    except InputError as error:
        raise type(error)(error.what, where=path, hint=f"correct or unset {TABLE_VARIABLE}") from error
    loaded = parse_yaml(text, path, kind=ConfigError)
    if not isinstance(loaded, dict) or not all(isinstance(fields, dict) for fields in loaded.values()):
        raise ConfigError("expected a mapping from names to fields", where=str(path))
    return {str(name): fields for name, fields in loaded.items()}


def _edited(known: Weights | None, name: str, fields: dict[str, Any], where: str) -> Weights:
    values: dict[str, Any] = {}
    for key, value in fields.items():
        if key not in _EDITABLE:
            raise ConfigError(
                f"{name}: unknown field '{key}'", where=where, hint=did_you_mean(key, _EDITABLE)
            )
        wanted = int if key == "size" else str
        # An unquoted checksum of digits alone is a number to YAML.
        values[key] = str(value) if wanted is str and type(value) is int else value
        if not isinstance(values[key], wanted) or isinstance(value, bool):
            raise ConfigError(f"{name}: {key} must be {'a number' if wanted is int else 'text'}", where=where)
    entry = Weights(name) if known is None else known
    # One origin takes the place of the other; checksums stay unless replaced: a mirror has the same file.
    if "url" in values:
        entry = replace(entry, hub="", shipped="")
    elif "hub" in values:
        entry = replace(entry, url="", shipped="", sha256="", md5_prefix="")
    entry = replace(entry, **values)
    if sum(map(bool, (entry.url, entry.hub, entry.shipped))) != 1:
        raise ConfigError(f"{name}: give either url or hub", where=where)
    if entry.url and not (entry.url.startswith(("http://", "https://")) and entry.file_name):
        raise ConfigError(f"{name}: '{entry.url}' is not the http(s) address of a file", where=where)
    return entry
