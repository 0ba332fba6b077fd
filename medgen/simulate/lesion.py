"""Bright lesions by formula, put into an image: what is not normal, with known place and extent.

They are blobs with soft, uneven borders, from specks to masses, or confluent fields; no atlas of where a disease lies.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from medgen.simulate.head import smooth_noise

Array = npt.NDArray[np.float32]
Box = tuple[slice, ...]

_CONFLUENT_SHARE = 0.25
_MOST_BLOBS = 12
_REACH = 2.2  # radii beyond which a blob with its uneven border has ended
_SURROUNDINGS_MM = 1.5


@dataclass(frozen=True)
class LesionRange:
    """From what lesions are drawn.

    Attributes:
        radius_mm: of a blob, smallest and largest; small ones are more frequent (uniform in the logarithm).
        brightness: that the middle of a lesion reaches, smallest and largest, in the units of the image.
        edge_mm: width of the border.
        count: of blobs, on average.
    """

    radius_mm: tuple[float, float] = (1.0, 20.0)
    brightness: tuple[float, float] = (1.1, 1.9)
    edge_mm: tuple[float, float] = (0.25, 1.0)
    count: float = 4.0


def draw_lesions(
    places: npt.NDArray[np.bool_], rng: np.random.Generator, drawn: LesionRange | None = None, voxel_mm: float = 1.0
) -> tuple[Array, Array]:
    """Returns how far lesions cover each voxel, 0 to 1, and how bright they are there; both `(X, Y, Z)`.

    Args:
        places: where a lesion may have its middle.
        rng: of the draw.
        drawn: sizes, number and brightness.
        voxel_mm: size of a voxel.
    """
    ranges = drawn or LesionRange()
    cover, brightness = np.zeros(places.shape, np.float32), np.zeros(places.shape, np.float32)
    middles = np.argwhere(places)
    if not len(middles):
        return cover, brightness
    uneven = smooth_noise(places.shape, float(rng.uniform(3, 8)) / voxel_mm, rng)
    parts: list[tuple[Box, Array]]
    if rng.uniform() < _CONFLUENT_SHARE:
        field = smooth_noise(places.shape, float(rng.uniform(8, 30)) / voxel_mm, rng) + 0.15 * uneven
        parts = [
            (tuple(slice(None) for _ in range(3)), _soft((field - rng.uniform(0.8, 1.8)) / rng.uniform(0.03, 0.15)))
        ]
    else:
        count = min(1 + int(rng.poisson(ranges.count)), _MOST_BLOBS)
        parts = [_blob(middles[rng.integers(len(middles))], uneven, rng, ranges, voxel_mm) for _ in range(count)]
    low, high = ranges.brightness
    for where, part in parts:
        # Faint ones are the hard ones: uniform in the logarithm of what they stand out by.
        level = low + (high - low) * (np.exp(rng.uniform(np.log(0.03), 0.0)) - 0.03)
        brightness[where] = np.where(part > cover[where], level + 0.05 * uneven[where], brightness[where])
        cover[where] = np.maximum(cover[where], part)
    return cover, brightness


def add_lesions(image: Array, cover: Array, brightness: Array, voxel_mm: float = 1.0) -> Array:
    """Returns the image `(X, Y, Z)` with its surroundings lifted to `brightness` as far as `cover` says.

    What varies from voxel to voxel, noise and texture, stays as it was: a lesion is not smoother than its image. What
    is brighter already, as fluid on T2, does not change.
    """
    surroundings = gaussian_filter(image, _SURROUNDINGS_MM / voxel_mm)
    return np.asarray(image + cover * np.maximum(brightness - surroundings, 0), dtype=np.float32)


def _blob(
    middle: npt.NDArray[np.intp], uneven: Array, rng: np.random.Generator, ranges: LesionRange, voxel_mm: float
) -> tuple[Box, Array]:
    """An ellipsoid with an uneven border: the box that holds it, and how far it covers that."""
    low, high = np.log(ranges.radius_mm)
    # Two in three are from the smaller half of the scale.
    radius = float(np.exp(rng.uniform(low, high if rng.uniform() < 1 / 3 else 0.5 * (low + high))))
    semi_axes = radius * np.exp(rng.normal(0, 0.35, 3))
    reach = int(np.ceil((_REACH * semi_axes.max() + 2) / voxel_mm))
    box = tuple(slice(max(c - reach, 0), min(c + reach + 1, n)) for c, n in zip(middle, uneven.shape, strict=True))
    axes = [np.arange(s.start, s.stop, dtype=np.float32) - c for s, c in zip(box, middle, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) * np.float32(voxel_mm)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    distance = np.linalg.norm(offsets @ turn.astype(np.float32) / semi_axes.astype(np.float32), axis=-1)
    depth_mm = (1 - distance) * semi_axes.min() + uneven[box] * min(0.35 * radius, 2.5)
    return box, _soft(depth_mm / rng.uniform(*ranges.edge_mm))


def _soft(depth: npt.NDArray[np.floating]) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(depth, -30, 30))), dtype=np.float32)
