"""Selective Search and Edge Boxes by opencv-contrib, for comparison; runs in an environment of its own.

``opencv-contrib-python`` and the ``opencv-python`` that weaksam needs cannot live in one environment, so this
script imports nothing of weaksam. ``make ablation-proposals`` makes the environment and calls it:

    .venv-contrib/bin/python benchmarks/classic_proposals.py --images list.json --out classic.json

Selective Search (Uijlings et al., 2013) in its fast mode, in OpenCV's order. Edge Boxes (Zitnick and Dollár,
2014) needs a trained structured-edge model, which OpenCV does not ship: give its ``model.yml.gz`` with
``--edge-model``, or that row is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Boxes = list[list[float]]


def selective_search(image: Any, limit: int) -> Boxes:
    """Half-open xyxy boxes of one BGR image."""
    cv: Any = cv2
    search = cv.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    search.switchToSelectiveSearchFast()
    return [[float(x), float(y), float(x + w), float(y + h)] for x, y, w, h in search.process()[:limit]]


def edge_boxes(image: Any, model: Any, limit: int) -> Boxes:
    """Half-open xyxy boxes of one BGR image, best first."""
    cv: Any = cv2
    edges = model.detectEdges(np.float32(image[:, :, ::-1]) / 255.0)
    thin = model.edgesNms(edges, model.computeOrientation(edges))
    found = cv.ximgproc.createEdgeBoxes(maxBoxes=limit).getBoundingBoxes(
        thin, model.computeOrientation(edges)
    )
    rectangles = found[0] if isinstance(found, tuple) else found
    return [[float(x), float(y), float(x + w), float(y + h)] for x, y, w, h in rectangles]


def main() -> None:
    """Write image id -> boxes for every method that can run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="JSON of image id -> path")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=2000, help="boxes per image")
    parser.add_argument("--edge-model", type=Path, help="structured-edge model for Edge Boxes")
    options = parser.parse_args()
    cv: Any = cv2
    cv.setNumThreads(1)
    cv.setRNGSeed(0)
    model = None
    if options.edge_model is None:
        print("no --edge-model: Edge Boxes is left out", file=sys.stderr)
    else:
        model = cv.ximgproc.createStructuredEdgeDetection(str(options.edge_model))
    found: dict[str, dict[str, Boxes]] = {"Selective Search": {}}
    if model is not None:
        found["Edge Boxes"] = {}
    for image_id, path in json.loads(options.images.read_text(encoding="utf-8")).items():
        image = cv.imread(path, cv.IMREAD_COLOR)
        if image is None:
            sys.exit(f"{path}: not an image that OpenCV can read")
        found["Selective Search"][image_id] = selective_search(image, options.limit)
        if model is not None:
            found["Edge Boxes"][image_id] = edge_boxes(image, model, options.limit)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
