"""A picture of a digit as an image made like MNIST's: ink bright, in a box of 20, centred by mass.

LeCun et al. 1998, "Gradient-based learning applied to document recognition", section III.A: digits
are scaled, with anti-aliasing, to fit a box of 20 pixels, whose centre of mass is then put to the
middle of 28 pixels. In MNIST that is by whole pixels, to pixel 14: over its 70,000 images the
centre lies evenly from 13.5 to 14.5 (mean 14.00 and 14.01), and the longest side is 20.
"""

import io
import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor

BOX, FIELD, CENTRE = 20, 28, 14
LARGEST = 400  # a photo has millions of pixels, of which 20 x 20 will be left


def prepare_digit(
    image: str | Path | bytes | np.ndarray | Tensor | Image.Image,
) -> Float[Tensor, "1 1 28 28"]:
    """A photo, scan or drawing of one digit as an image in [0, 1] like those of MNIST.

    image: the path of a picture, the bytes of its file, or its pixels, (h, w), (h, w, channels) or
    (channels, h, w), grey or in colour, with or without an alpha channel, whole numbers or from 0
    to 1. The digit is what differs in colour from the background, so it may be dark on white or the
    reverse, anywhere, of any size; it may touch an edge, but the background must be along most of
    them. Raises ValueError for what is no picture, or has nothing on its background.
    """
    ink = find_ink(zoom(read_pixels(image))).astype(np.float32)
    digit = crop(ink, 0.03)
    if max(digit.shape) != BOX:  # what is not yet in MNIST's format has blurred edges
        digit = crop(ink, 0.2)
    scale = BOX / max(digit.shape)
    height, width = (max(1, round(side * scale)) for side in digit.shape)
    small = Image.fromarray(digit).resize((width, height), Image.Resampling.BICUBIC)
    small = torch.from_numpy(np.array(small)).clamp(0, 1)
    return place_by_mass(small / small.max())


def crop(ink: np.ndarray, least: float) -> np.ndarray:
    """The rectangle of what has at least so much ink."""
    rows, columns = (np.flatnonzero((ink >= least).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def place_by_mass(ink: Float[Tensor, "h w"]) -> Float[Tensor, "1 1 28 28"]:
    """Ink, of at most 28 pixels a side, where its centre of mass is nearest to pixel 14."""
    field = ink.new_zeros(1, 1, FIELD, FIELD)
    corner = []
    for axis, side in enumerate(ink.shape):
        mass = ink.sum(1 - axis)
        centre = float(mass @ torch.arange(side, dtype=mass.dtype, device=mass.device) / mass.sum())
        # not beyond the edges
        corner.append(min(max(round(CENTRE - centre), 0), FIELD - side))
    top, left = corner
    field[0, 0, top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return field


def read_pixels(image: str | Path | bytes | np.ndarray | Tensor | Image.Image) -> np.ndarray:
    """A picture as (h, w, channels) in [0, 1]."""
    if isinstance(image, str | Path | bytes):
        image = read_file(image)
    elif isinstance(image, Image.Image):
        image = upright(image)
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    found = pixels.shape
    if pixels.ndim == 4 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim == 3 and pixels.shape[2] > 4 and pixels.shape[0] <= 4:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4 or min(pixels.shape[:2]) < 2:
        raise ValueError(f"image must be (h, w) or (h, w, channels), got shape {found}")
    if pixels.dtype.kind not in "buif" or not np.isfinite(pixels).all():
        raise ValueError(f"image must be finite numbers, got {pixels.dtype} with others")
    return without_alpha(to_unit(pixels))


def read_file(image: str | Path | bytes) -> np.ndarray:
    """The pixels of a picture file, or of its bytes."""
    source = io.BytesIO(image) if isinstance(image, bytes) else Path(image).expanduser()
    try:
        with Image.open(source) as file:
            return upright(file)
    except (OSError, Image.DecompressionBombError, SyntaxError) as error:
        if getattr(error, "errno", None) is not None:  # of the file system, not of the picture
            raise
        named = "bytes" if isinstance(image, bytes) else source
        raise ValueError(f"image must be a picture, got {named} ({error})") from error


def upright(image: Image.Image) -> np.ndarray:
    """The pixels of a picture as the phone was held, in colours of a screen."""
    image = ImageOps.exif_transpose(image)
    shown = image.mode in ("1", "L", "RGB", "RGBA") or image.mode[:1] in "IF"
    return np.array(image if shown else image.convert("RGBA"))


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 1, by the range of their type, or of what they hold."""
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind == "f" and low >= -0.2 and high <= 1.2:  # what interpolation leaves
        return pixels.astype(np.float32).clip(0, 1)
    if low < 0:
        raise ValueError(f"image must have no negative pixels, got {low:.3g}")
    largest = next((bound for bound in (1, 255, 65535) if high <= bound), high)  # 1: a mask
    return pixels.astype(np.float32) / largest


def zoom(pixels: np.ndarray) -> np.ndarray:
    """Of a large picture the digit, and background around it; not much larger than LARGEST."""
    step = step_of(pixels)
    if step == 1:
        return pixels
    coarse = find_ink(shrink(pixels))
    places = [np.flatnonzero((coarse > 0.02).any(axis)) for axis in (1, 0)]
    around = max(place[-1] + 1 - place[0] for place in places) // 2 + 2
    rows, columns = (
        slice(max(0, p[0] - around) * step, (p[-1] + 1 + around) * step) for p in places
    )
    return shrink(pixels[rows, columns])


def step_of(pixels: np.ndarray) -> int:
    """The side of the blocks that `shrink` takes the mean of."""
    height, width = pixels.shape[:2]
    return max(1, min(math.isqrt(height * width) // LARGEST, height // 2, width // 2))


def shrink(pixels: np.ndarray) -> np.ndarray:
    """The mean of blocks of pixels, of which not many more than LARGEST x LARGEST are left."""
    step = step_of(pixels)
    height, width = (side // step * step for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // step, step, width // step, step, -1)
    return blocks.mean((1, 3))


def without_alpha(pixels: np.ndarray) -> np.ndarray:
    """What is seen of a picture on paper; on black, where what it shows is bright."""
    if pixels.shape[2] in (1, 3):
        return pixels
    colours, alpha = pixels[:, :, :-1], pixels[:, :, -1:]
    shown = (colours * alpha).sum() / max(alpha.sum() * colours.shape[2], 1e-9)
    paper = 1.0 if shown < 0.5 or alpha.min() > 0.5 else 0.0
    return colours * alpha + paper * (1 - alpha)


def find_ink(pixels: np.ndarray) -> np.ndarray:
    """How much ink is on each pixel: 0 on the background, 1 in the digit.

    (h, w, channels) -> (h, w). Ink is what differs in colour from the background, less the
    background's own noise. Specks, of less than a thirtieth of the largest stroke, are left out.
    """
    distance, noise = distance_from_background(pixels)
    contrast = float(np.sort(distance, axis=None)[-max(4, distance.size // 50_000)])
    if contrast < max(0.04, 6 * noise):
        raise ValueError(
            f"image must have a digit on an even background, got a contrast of {contrast:.2g} in "
            f"a noise of {noise:.2g}"
        )
    level = float(np.quantile(distance[distance > contrast / 2], 0.9))
    ink = np.clip((distance - 3 * noise) / (level - 3 * noise), 0, 1)
    strokes, count = ndimage.label(ink > 0.02, np.ones((3, 3)))
    mass = ndimage.sum_labels(ink, strokes, np.arange(count + 1))
    mass[0] = 0
    return ink * (mass >= mass.max() / 30)[strokes]


def distance_from_background(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """How far each pixel's colour is from the background's (h, w), and how far that is from even.

    The background is a plane through the colours along the edges, as light falls unevenly.
    """
    height, width = pixels.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    plane = np.stack([np.ones_like(x), x, y], 2)  # (h, w, 3)
    depth = max(1, min(height, width) // 30)
    edge = np.ones((height, width), bool)
    edge[depth:-depth, depth:-depth] = False
    colours, places = pixels[edge], plane[edge]
    background = np.median(colours, 0)
    for _ in range(4):  # without what of the digit, or of a shadow, touches an edge
        error = np.linalg.norm(colours - background, axis=1)
        near = error <= np.quantile(error, 0.7)
        fitted = np.linalg.lstsq(places[near], colours[near], rcond=None)[0]  # (3, channels)
        background = places @ fitted
    noise = float(np.quantile(np.linalg.norm(colours - background, axis=1), 0.6))
    return np.linalg.norm(pixels - plane @ fitted, axis=2), noise
