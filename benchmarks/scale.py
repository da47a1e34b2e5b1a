"""Time and memory of what handles the files of a large data set, on made-up artifacts of any number of images.

    python -m benchmarks.scale --images 8278 82783

Makes no models: parts of `prompts.h5` and `proposals.h5` as the stages write them (100 points and 213 boxes an image,
about those of COCO 2014), merges them, opens the tables, reads every image in order and some at random, and writes
detections (97 an image). Every step runs in a process of its own, whose peak memory is printed; compare two sizes for
the slope.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.artifacts.coco_json import write_results
from stages.core.artifacts.joined_table import JoinedTable
from stages.core.artifacts.schemas import PROMPTS, PROPOSALS, boxes_to_rows
from stages.core.artifacts.table import ImageRows, gather, read_table, write_table
from stages.core.artifacts.table_file import TableSchema
from stages.core.runtime.parts import part_lists
from stages.core.structures.detections import Detections

POINTS, BOXES, DETECTIONS = 100, 213, 97
"""Rows of an image."""
CLASSES = 80
RANDOM_READS = 2000
WIDTH, HEIGHT = 640, 480


@dataclass(frozen=True)
class Split:
    """What the COCO writer needs of a split."""

    ids: tuple[str, ...]
    name: str = "made_train"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(f"class {i}" for i in range(CLASSES))

    @property
    def category_ids(self) -> tuple[int, ...]:
        """From 1, as COCO's."""
        return tuple(range(1, CLASSES + 1))

    def coco_id(self, image_id: str) -> int:
        """Position of the image, from 1."""
        return int(image_id)

    def id_of(self, coco_id: int) -> str:
        """Image of a position."""
        return f"{coco_id:012d}"

    def file_name(self, image_id: str) -> str:
        """As COCO's."""
        return f"{image_id}.jpg"


def image_ids(images: int) -> tuple[str, ...]:
    """Ids as COCO's files have them."""
    return tuple(f"{i:012d}" for i in range(1, images + 1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[8278], help="Numbers of images.")
    parser.add_argument("--folder", type=Path, help="Where the files are made; default a temporary folder.")
    options = parser.parse_args(arguments)
    print("| images | step | seconds | peak MiB | result |\n|---|---|---|---|---|")
    for images in options.images:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            for step, function, schema in STEPS:
                seconds, peak, result = in_process(function, Path(name), images, schema)
                print(f"| {images} | {step} | {seconds:.1f} | {peak:.0f} | {result} |", flush=True)


def in_process(
    function: Callable[[Path, int, TableSchema], str], folder: Path, images: int, schema: TableSchema
) -> tuple[float, float, str]:
    """Run a step in a new process; return its CPU seconds, peak memory (MiB), and what it says."""
    spawn = multiprocessing.get_context("spawn")
    queue: Any = spawn.Queue()
    process = spawn.Process(target=_measure, args=(queue, function, folder, images, schema))
    process.start()
    measured: tuple[float, float, str] = queue.get()
    process.join()
    return measured


def _measure(
    queue: Any,
    function: Callable[[Path, int, TableSchema], str],
    folder: Path,
    images: int,
    schema: TableSchema,
) -> None:
    start = time.process_time()
    said = function(folder, images, schema)
    seconds = time.process_time() - start
    queue.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, said))


def made_boxes(generator: np.random.Generator, count: int) -> Any:
    """Boxes of an image, (n, 4) float32."""
    corners = generator.random((count, 2)) * [WIDTH - 40, HEIGHT - 40]
    return np.concatenate([corners, corners + 8 + generator.random((count, 2)) * 32], axis=1).astype(
        np.float32
    )


def made_rows(schema: TableSchema, generator: np.random.Generator) -> ImageRows:
    """Rows of an image with the columns of a schema, without masks."""
    count = POINTS if schema is PROMPTS or schema.name == PROMPTS.name else BOXES
    pointers = {name for _, *both in schema.pools.values() for name in both}
    columns: dict[str, Any] = {}
    for name, dtype in schema.columns.items():
        if name not in pointers:
            whole = np.issubdtype(np.dtype(dtype), np.integer)
            columns[name] = generator.integers(0, 3, count) if whole else generator.random(count)
    if "x1" in columns:
        columns |= boxes_to_rows(made_boxes(generator, count))
    pools = {pool: [np.zeros(0, dtype)] * count for pool, (dtype, _, _) in schema.pools.items()}
    return ImageRows(columns, {"image_h": HEIGHT, "image_w": WIDTH}, pools)


def part_paths(folder: Path, images: int, schema: TableSchema) -> list[Path]:
    """Where the parts of a table lie."""
    return [folder / f"{schema.name}-{i:05d}.h5" for i in range(len(part_lists(image_ids(images))))]


def make_parts(folder: Path, images: int, schema: TableSchema) -> str:
    """Write the parts of a table."""
    generator = np.random.default_rng(0)
    paths = part_paths(folder, images, schema)
    for path, ids in zip(paths, part_lists(image_ids(images)), strict=True):
        write_table(path, schema, gather(schema, {i: made_rows(schema, generator) for i in ids}))
    return f"{len(paths)} files"


def merge_parts(folder: Path, images: int, schema: TableSchema) -> str:
    """Merge the parts into one file."""
    path = folder / f"{schema.name}.h5"
    table = JoinedTable(part_paths(folder, images, schema), schema, image_ids(images))
    write_table(path, schema, table)
    return f"{table.num_rows} rows, {path.stat().st_size / 2**20:.0f} MiB"


def open_table(folder: Path, images: int, schema: TableSchema) -> str:
    """Open and check the table."""
    start = time.perf_counter()
    table = read_table(folder / f"{schema.name}.h5", schema)
    return f"{(time.perf_counter() - start) * 1e3:.0f} ms, {len(table.ids)} images"


def read_in_order(folder: Path, images: int, schema: TableSchema) -> str:
    """Read the rows of every image."""
    table = read_table(folder / f"{schema.name}.h5", schema)
    start = time.process_time()
    for image_id in table.ids:
        table.rows(image_id)
    return f"{images / (time.process_time() - start):.0f} images/s"


def read_at_random(folder: Path, images: int, schema: TableSchema) -> str:
    """Read the rows of some images, over and over, as a training does."""
    table = read_table(folder / f"{schema.name}.h5", schema)
    chosen = np.random.default_rng(1).integers(0, images, 2 * RANDOM_READS)
    seconds = []
    for index in chosen.tolist():
        start = time.process_time()
        table.rows(table.ids[index])
        seconds.append(time.process_time() - start)
    return f"{np.mean(seconds[RANDOM_READS:]) * 1e6:.0f} µs an image"


def write_detections(folder: Path, images: int, schema: TableSchema) -> str:
    """Write `detections.json`."""
    generator = np.random.default_rng(2)
    ids = image_ids(images)
    found = {
        i: Detections(
            made_boxes(generator, DETECTIONS),
            generator.integers(0, CLASSES, DETECTIONS),
            generator.random(DETECTIONS).astype(np.float32),
        )
        for i in ids
    }
    path = folder / "detections.json"
    write_results(path, Split(ids), found)
    return f"{images * DETECTIONS} boxes, {path.stat().st_size / 2**20:.0f} MiB"


STEPS: tuple[tuple[str, Callable[[Path, int, TableSchema], str], TableSchema], ...] = (
    ("parts of prompts", make_parts, PROMPTS),
    ("merge prompts", merge_parts, PROMPTS),
    ("open prompts", open_table, PROMPTS),
    ("prompts in order", read_in_order, PROMPTS),
    ("prompts at random", read_at_random, PROMPTS),
    ("parts of proposals", make_parts, PROPOSALS),
    ("merge proposals", merge_parts, PROPOSALS),
    ("open proposals", open_table, PROPOSALS),
    ("proposals in order", read_in_order, PROPOSALS),
    ("proposals at random", read_at_random, PROPOSALS),
    ("write detections", write_detections, PROPOSALS),
)


if __name__ == "__main__":
    main()
