"""CPU seconds of `prompt`: the max-pool against torch's, and whole images of 48 cross maps per class.

    python -m benchmarks.prompt_speed --repeats 5

Maps are smoothed noise on 24 x 24 cells, enlarged to 500 x 375 pixels: many peaks each, spread over the whole image,
which is the dear case, since the search is confined to the box around what reaches the threshold. One thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from stages.core.artifacts.schemas import CAMS, MAP_KINDS
from stages.core.artifacts.table import ImageRows, Table, gather
from stages.core.config import load_recipe
from stages.core.ops.peaks import max_pool
from stages.prompt.config import PromptConfig
from stages.prompt.points import image_points

SIZE = (375, 500)
CELLS = 24
CROSS_MAPS = 48
WINDOWS = (33, 65, 129)

Map = NDArray[np.float32]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print two Markdown tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="Timed calls of each; the least counts.")
    repeats = parser.parse_args(arguments).repeats
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    generator = np.random.default_rng(0)
    print("| window | torch, ms | max_pool, ms | ratio | equal bits |\n|---|---|---|---|---|")
    enlarged = cv2.resize(noise_map(generator), SIZE[::-1]).astype(np.float32)
    for window in WINDOWS:
        torch_seconds = least(partial(torch_pool, enlarged, window), repeats)
        seconds = least(partial(max_pool, enlarged, window), repeats)
        equal = torch_pool(enlarged, window).tobytes() == max_pool(enlarged, window).tobytes()
        print(
            f"| {window} | {torch_seconds * 1e3:.1f} | {seconds * 1e3:.2f} | {torch_seconds / seconds:.0f} | {equal} |"
        )
    print("\n| settings | classes | ms per image |\n|---|---|---|")
    for name, config in (
        ("paper", PromptConfig.model_validate(load_recipe("paper")["prompt"])),
        ("default", PromptConfig()),
    ):
        for classes in (1, 2, 3):
            cams = noise_maps(generator, classes)
            seconds = least(partial(image_points, cams, "a", config, 0), repeats)
            print(f"| {name} | {classes} | {seconds * 1e3:.0f} |")


def torch_pool(map_HW: Map, window: int) -> Map:
    """The running maximum by torch, along rows, then along columns."""
    values = torch.from_numpy(map_HW)[None, None]
    rows = F.max_pool2d(values, (1, window), 1, (0, window // 2))
    pooled: Map = F.max_pool2d(rows, (window, 1), 1, (window // 2, 0))[0, 0].numpy()
    return pooled


def noise_map(generator: np.random.Generator) -> Map:
    """Smoothed noise in [0, 1] on `CELLS` x `CELLS` cells."""
    values = cv2.GaussianBlur(generator.random((CELLS, CELLS), np.float32), (0, 0), 1.5)
    values -= values.min()
    return np.asarray(values / values.max(), np.float32)


def noise_maps(generator: np.random.Generator, classes: int) -> Table:
    """`cams.h5` of one image `a`: per class a coarse, a fine and the cross maps."""
    kinds = ["coarse", "fine", *["cross"] * CROSS_MAPS]
    labels = np.array([(c, MAP_KINDS.index(k)) for c in range(classes) for k in kinds])
    layers = np.where(labels[:, 1] == MAP_KINDS.index("cross"), 0, -1)
    cells = np.full(len(labels), CELLS)
    columns = {
        "class_index": labels[:, 0],
        "kind": labels[:, 1],
        "layer": layers,
        "head": layers,
        "grid_h": cells,
        "grid_w": cells,
    }
    values = [noise_map(generator) for _ in labels]
    rows = ImageRows(columns, {"image_h": SIZE[0], "image_w": SIZE[1]}, {"values": values})
    return gather(CAMS, {"a": rows})


def least(call: Callable[[], object], repeats: int) -> float:
    """The least CPU seconds of a call, after one that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
