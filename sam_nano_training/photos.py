"""Photographs with instance masks, and their cut-outs pasted onto each other, as scenes to train sam-nano on.

A photo scene is layered like a drawn one: one photo or a mosaic of four, then cut-outs of other photos from back to
front ("Simple Copy-Paste", Ghiasi et al. 2021). What a mask covers is what stays visible. Objects without a mask are
part of the picture but never asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from sam_nano_training.outlines import Mask
from sam_nano_training.scenes import Layer, Level, Scene, paint_scene, select_layers
from sam_nano_training.textures import Image, photograph

VOID: Final = 255
VOID_REACH: Final = 3
"""Pixels by which a mask grows into the void along its outline; VOC's void is about twice as wide."""
VOC07_PREFIX: Final = "2007_"
"""VOC 2012 holds photos of VOC 2007's test split under ids that begin so."""
MIN_CUTOUT_AREA: Final = 900
MIN_TILE: Final = 0.3


@dataclass(frozen=True)
class Photo:
    """One photo and its objects.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        objects: (H, W) uint8, k where the k-th object is visible, 0 elsewhere.
        count: number of objects.
    """

    image: NDArray[np.uint8]
    objects: NDArray[np.uint8]
    count: int


@dataclass(frozen=True)
class Cutout:
    """One object cut out of its photo along its bounding box."""

    image: NDArray[np.uint8]
    mask: Mask


def read_photos(devkit: Path, split: str = "train") -> list[Photo]:
    """Reads the photos of a VOC split that have instance masks, in the split's order.

    Args:
        devkit: folder with `JPEGImages`, `SegmentationObject` and `ImageSets/Segmentation`.
        split: name of the list; ids that may lie in VOC 2007's test split are left out.

    Raises:
        FileNotFoundError: a listed photo or mask is missing.
    """
    ids = (devkit / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
    return [_read_photo(devkit, image_id) for image_id in ids if not image_id.startswith(VOC07_PREFIX)]


def _read_photo(devkit: Path, image_id: str) -> Photo:
    with PILImage.open(devkit / "JPEGImages" / f"{image_id}.jpg") as picture:
        image = np.asarray(picture.convert("RGB"))
    with PILImage.open(devkit / "SegmentationObject" / f"{image_id}.png") as picture:
        values = np.asarray(picture)
    objects = share_void(values)
    return Photo(image, objects, int(objects.max()))


def share_void(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grows objects into the void that VOC leaves along outlines, and clears what void remains.

    Args:
        values: (H, W) object numbers, 0 for background, 255 for void.
    """
    objects = np.where(values == VOID, 0, values).astype(np.uint8)
    kernel = np.ones((3, 3), dtype=np.uint8)
    for _ in range(VOID_REACH):
        grown = np.asarray(cv2.dilate(objects, kernel), dtype=np.uint8)
        objects = np.where((objects == 0) & (values == VOID), grown, objects)
    return objects


def cut_out(photo: Photo) -> list[Cutout]:
    """Cuts out the objects of a photo that are large enough to be pasted and that at most one border crops."""
    found = []
    height, width = photo.objects.shape
    for number in range(1, photo.count + 1):
        mask = np.where(photo.objects == number, 255, 0).astype(np.uint8)
        left, top, columns, rows = cv2.boundingRect(mask)
        touching = (left <= 1) + (top <= 1) + (left + columns >= width - 1) + (top + rows >= height - 1)
        if (mask > 0).sum() < MIN_CUTOUT_AREA or touching > 1:
            continue
        box = slice(top, top + rows), slice(left, left + columns)
        found.append(Cutout(photo.image[box], mask[box]))
    return found


def vary_colors(rng: np.random.Generator, image: Image) -> Image:
    """Changes brightness, contrast, saturation and colour balance of an image in 0..1."""
    if rng.random() < 0.2:
        return image
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * np.float32(rng.uniform(0.4, 1.5))
    middle = np.float32(image.mean())
    image = middle + (image - middle) * np.float32(rng.uniform(0.6, 1.4))
    image = image * rng.normal(1, 0.06, 3).astype(np.float32) + np.float32(rng.normal(0, 0.08))
    image = np.clip(image, 0, 1)
    if rng.random() < 0.04:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    return np.asarray(image, dtype=np.float32)


def _resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    smaller = height < image.shape[0]
    mode = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=mode), dtype=np.uint8)


def _as_float(image: NDArray[np.uint8]) -> Image:
    return np.asarray(image, dtype=np.float32) * np.float32(1 / 255)


class PhotoPainter:
    """Composes one photo scene; every random choice comes from `rng`."""

    def __init__(
        self,
        rng: np.random.Generator,
        photos: Sequence[Photo],
        cutouts: Sequence[Cutout],
        bank: list[Image],
        size: int,
    ) -> None:
        self.rng = rng
        self.photos = photos
        self.cutouts = cutouts
        self.bank = bank
        self.size = size
        self.layers: list[Layer] = []
        self.image: Image = np.zeros((size, size, 3), dtype=np.float32)
        self.valid_hw = (size, size)

    def compose(self) -> None:
        """Lays the ground and pastes cut-outs onto it."""
        rng = self.rng
        kind = rng.choice(4, p=[0.3, 0.3, 0.25, 0.15])
        if kind == 0:
            self._whole()
            pasted = int(rng.choice(3, p=[0.5, 0.3, 0.2]))
        elif kind == 1:
            self._window(self._photo(), 0, 0, self.size, self.size, float(np.exp(rng.uniform(0, 0.8))))
            pasted = int(rng.integers(0, 4))
        elif kind == 2:
            self._mosaic()
            pasted = int(rng.integers(0, 3))
        else:
            self.image, self.layers = paint_scene(rng, self.bank, self.size)
            pasted = int(rng.integers(2, 5))
        for _ in range(pasted):
            self._paste(self.cutouts[int(rng.integers(len(self.cutouts)))])

    def _photo(self) -> Photo:
        return self.photos[int(self.rng.integers(len(self.photos)))]

    def _whole(self) -> None:
        """A photo as a segmenter sees it: its longest side fills the square, the rest is padding."""
        photo, rng = self._photo(), self.rng
        height, width = photo.image.shape[:2]
        height = int(height * np.exp(rng.normal(0, 0.12)))
        scale = self.size / max(height, width)
        rows, columns = max(int(height * scale), 32), max(int(width * scale), 32)
        rows, columns = min(rows, self.size), min(columns, self.size)
        self._lay(photo, slice(0, photo.image.shape[0]), slice(0, photo.image.shape[1]), 0, 0, rows, columns)
        self.valid_hw = (rows, columns)

    def _window(self, photo: Photo, top: int, left: int, rows: int, columns: int, zoom: float) -> None:
        """A random window of a photo fills a rectangle; with `zoom` 1 it is as large as fits."""
        rng = self.rng
        height, width = photo.image.shape[:2]
        aspect = rows / columns * float(np.exp(rng.normal(0, 0.12)))
        window_height = min(height, width * aspect) / zoom
        window_width = window_height / aspect
        y = rng.uniform(0, height - window_height)
        x = rng.uniform(0, max(width - window_width, 0))
        self._lay(
            photo,
            slice(int(y), max(int(y + window_height), int(y) + 2)),
            slice(int(x), max(int(x + window_width), int(x) + 2)),
            top,
            left,
            rows,
            columns,
        )

    def _mosaic(self) -> None:
        """Four windows of different photos: many objects, small ones, in one picture."""
        rng, size = self.rng, self.size
        row, column = (int(size * rng.uniform(MIN_TILE, 1 - MIN_TILE)) for _ in range(2))
        for top, bottom in ((0, row), (row, size)):
            for left, right in ((0, column), (column, size)):
                zoom = float(np.exp(max(rng.normal(0, 0.4), 0)))
                self._window(self._photo(), top, left, bottom - top, right - left, zoom)

    def _lay(self, photo: Photo, y: slice, x: slice, top: int, left: int, rows: int, columns: int) -> None:
        """Draws a part of a photo into a rectangle of the scene and records its objects."""
        rng = self.rng
        image, objects = photo.image[y, x], photo.objects[y, x]
        if rng.random() < 0.5:
            image, objects = image[:, ::-1], objects[:, ::-1]
        box = slice(top, top + rows), slice(left, left + columns)
        self.image[box] = vary_colors(rng, _as_float(_resize(np.ascontiguousarray(image), rows, columns)))
        for number in np.unique(objects):
            if number == 0:
                continue
            whole = np.where(objects == number, 255, 0).astype(np.uint8)
            visible = np.zeros((self.size, self.size), dtype=np.uint8)
            visible[box] = _resize(whole, rows, columns)
            # Cropped by the photo's own border or by ours, an object is whole as far as the picture shows it.
            self.layers.append(Layer(visible, Level.OBJECT, -1, float(visible.sum()) / 255))

    def _paste(self, cutout: Cutout) -> None:
        rng, size = self.rng, self.size
        height, width = cutout.mask.shape
        longest = float(np.exp(rng.uniform(np.log(0.06), np.log(0.7)))) * size
        scale = longest / max(height, width)
        angle = float(rng.normal(0, 12))
        stretch = float(np.exp(rng.normal(0, 0.1)))
        flip = -1.0 if rng.random() < 0.5 else 1.0
        image, mask = cutout.image, cutout.mask
        if scale < 0.7:
            rows, columns = max(int(height * scale), 2), max(int(width * scale), 2)
            image, mask = _resize(image, rows, columns), _resize(mask, rows, columns)
            height, width, scale = rows, columns, 1.0
        cosine, sine = np.cos(np.deg2rad(angle)) * scale, np.sin(np.deg2rad(angle)) * scale
        matrix = np.array([[cosine * flip * stretch, -sine, 0.0], [sine * flip * stretch, cosine, 0.0]])
        centre = rng.uniform(0.02, 0.98, 2) * (self.valid_hw[1], self.valid_hw[0])
        matrix[:, 2] = centre - matrix[:, :2] @ (width / 2, height / 2)
        cover = np.asarray(cv2.warpAffine(mask, matrix, (size, size)), dtype=np.uint8)
        if rng.random() < 0.7:
            # A pixel of the old background clings to every cut-out; a softer, smaller edge hides the seam.
            cover = np.asarray(cv2.GaussianBlur(cover, (0, 0), float(rng.uniform(0.4, 1.2))), dtype=np.uint8)
        left, top, columns, rows = cv2.boundingRect(cover)
        if columns == 0:
            return
        box = slice(top, top + rows), slice(left, left + columns)
        surface = np.asarray(
            cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8
        )
        weight = cover[box][..., None].astype(np.float32) / 255
        pixels = vary_colors(rng, _as_float(surface[box]))
        self.image[box] += weight * (pixels - self.image[box])
        inverse = 255 - cover[box]
        for layer in self.layers:
            layer.visible[box] = cv2.multiply(layer.visible[box], inverse, scale=1 / 255)
        self.layers.append(Layer(cover, Level.OBJECT, -1, float(cover.sum()) / 255))


def compose_scene(
    rng: np.random.Generator,
    photos: Sequence[Photo],
    cutouts: Sequence[Cutout],
    bank: list[Image],
    size: int,
) -> Scene:
    """Composes a scene of photos with at least one mask.

    Args:
        rng: the only source of chance.
        photos: what `read_photos` read.
        cutouts: their objects, of `cut_out`.
        bank: noise fields of `make_noise_bank`, for drawn grounds.
        size: side of the square picture in pixels.
    """
    while True:
        painter = PhotoPainter(rng, photos, cutouts, bank, size)
        painter.compose()
        masks, levels, parents = select_layers(painter.layers, painter.valid_hw, size)
        if len(masks):
            break
    rows, columns = painter.valid_hw
    image = np.zeros((size, size, 3), dtype=np.uint8)
    visible = painter.image[:rows, :columns]
    if rng.random() < 0.3:
        image[:rows, :columns] = photograph(rng, visible)
    else:
        image[:rows, :columns] = np.clip(visible * 255 + 0.5, 0, 255)
    return Scene(image, masks, levels, parents, painter.valid_hw)
