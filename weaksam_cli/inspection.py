"""``weaksam inspect ARTIFACT``: what a file of this project holds, without loading more than needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from weaksam_cli.options import Options, with_options


@with_options("as_json", panel=None)
def inspect_artifact(
    options: Options,
    artifact: Annotated[
        Path, typer.Argument(help="A .h5, .json or .safetensors artifact, or a stage's folder.")
    ],
    image: Annotated[
        str | None, typer.Option("--image", help="Show the rows of this image (HDF5 tables).")
    ] = None,
) -> None:
    """Show what an artifact holds: schema, counts, settings, failures."""
    facts = describe(artifact, image)
    if options.as_json:
        typer.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for name, item in value.items():
                typer.echo(f"  {name}: {item}")
        elif isinstance(value, list):
            typer.echo(f"{key}: {len(value)}")
            for item in value[:20]:
                typer.echo(f"  {item}")
        else:
            typer.echo(f"{key}: {value}")


def describe(path: Path, image: str | None = None) -> dict[str, Any]:
    """Facts about an artifact or a stage's folder.

    Raises:
        MissingInputError: nothing there.
        SchemaError: not an artifact of this project.
    """
    from stages.core.errors import MissingInputError, SchemaError

    if path.is_dir():
        return _manifest(path)
    if not path.is_file():
        raise MissingInputError("no such file or folder", where=path, hint="give an artifact of a run folder")
    if path.name == "manifest.json":
        return _manifest(path.parent)
    if path.suffix == ".h5":
        return _table(path, image)
    if path.suffix == ".json":
        return _coco(path)
    if path.suffix == ".safetensors":
        return _weights(path)
    raise SchemaError(
        f"'{path.suffix}' is not an artifact's suffix",
        where=path,
        hint="expected .h5, .json or .safetensors",
    )


def _manifest(folder: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from stages.core.artifacts.manifest import read_manifest

    facts = asdict(read_manifest(folder))
    facts["inputs"] = {n: f"{r['path']} sha256 {r['sha256'][:12]}" for n, r in facts["inputs"].items()}
    facts["command"] = " ".join(facts["command"])
    return facts


def _table(path: Path, image: str | None) -> dict[str, Any]:
    import h5py
    import numpy as np

    from stages.core.artifacts.schemas import SCHEMAS
    from stages.core.artifacts.table import read_table
    from stages.core.errors import InputError, SchemaError, did_you_mean

    try:
        with h5py.File(path, "r") as file:
            name = str(file.attrs.get("weaksam_artifact"))
    except OSError as error:
        raise SchemaError(f"not an HDF5 file ({error})", where=path) from error
    if name not in SCHEMAS:
        raise SchemaError(f"holds '{name}', not a table of this project", where=path)
    schema = SCHEMAS[name]
    table = read_table(path, schema)
    if image is not None:
        if image not in table:
            raise InputError(f"no image '{image}'", where=path, hint=did_you_mean(image, table.ids))
        rows = table.rows(image)
        return {"image": image, **table.image_row(image), "columns": {k: v.tolist() for k, v in rows.items()}}
    counts = np.diff(table.offsets)
    columns = {}
    for column, values in table.columns.items():
        finite = values[np.isfinite(values)] if values.size else values
        span = f"{finite.min():g} to {finite.max():g}" if finite.size else "empty"
        columns[column] = f"{values.dtype}, {span}"
    return {
        "artifact": f"{schema.name} (schema {schema.version})",
        "images": len(table.ids),
        "rows": table.num_rows,
        "rows per image": f"mean {counts.mean():.1f}, min {counts.min()}, max {counts.max()}"
        if len(counts)
        else "none",
        "images without rows": int((counts == 0).sum()),
        "columns": columns,
        "attributes": {k: str(v) for k, v in table.attrs.items()},
    }


def _coco(path: Path) -> dict[str, Any]:
    """Facts about COCO results or a COCO data set; of other JSON what it is."""
    from collections import Counter

    from stages.core.artifacts.files import read_json

    loaded = read_json(path)
    entries = loaded.get("annotations") if isinstance(loaded, dict) else loaded
    if not isinstance(entries, list) or not entries_are_boxes(entries):
        return {"artifact": "JSON, neither COCO results nor a COCO data set", **_outline(loaded)}
    facts: dict[str, Any] = {
        "artifact": "COCO data set" if isinstance(loaded, dict) else "COCO results",
        "boxes": len(entries),
        "images with boxes": len({str(e.get("image_id")) for e in entries}),
        "with masks": sum(bool(e.get("segmentation")) for e in entries),
        "boxes per category": dict(sorted(Counter(str(e["category_id"]) for e in entries).items())),
    }
    if isinstance(loaded, dict):
        images, categories = loaded.get("images"), loaded.get("categories")
        facts["images"] = len(images) if isinstance(images, list) else 0
        facts["categories"] = {
            str(c.get("id")): c.get("name") for c in categories or () if isinstance(c, dict)
        }
    return facts


def entries_are_boxes(entries: list[Any]) -> bool:
    """Whether every entry of a list has the category of a box."""
    return all(isinstance(entry, dict) and "category_id" in entry for entry in entries)


def _outline(loaded: Any) -> dict[str, Any]:
    """What a JSON value holds at its first level."""
    if isinstance(loaded, dict):
        return {"keys": {str(k)[:80]: type(v).__name__ for k, v in list(loaded.items())[:20]}}
    return {"entries": len(loaded)} if isinstance(loaded, list) else {"value": str(loaded)[:200]}


def _weights(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    from stages.core.weights.checkpoints import read_metadata

    metadata = read_metadata(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        count = sum(_product(t.get_shape()) for t in tensors.values())
    return {"artifact": "weights", "parameters": count, "tensors": len(tensors), "metadata": metadata}


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
