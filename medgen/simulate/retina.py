"""The retina as layers by formula: how thick each is from place to place, healthy or with a lesion, with known truth.

A layer is a row of thicknesses; a lesion makes a layer thicker, thinner or of other brightness, or opens one that
health has not (fluid below the photoreceptors, deposits on Bruch's membrane).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from medgen.errors import IntensityError
from medgen.simulate.head import smooth_noise

Array = npt.NDArray[np.float32]
Lesion = Literal["", "drusen", "fluid", "neovascular"]

LESIONS: tuple[Lesion, ...] = get_args(Lesion)
AXIAL_UM = 3.87
LATERAL_UM = 11.5
# Name: thickness [um] at the fovea's bottom, on its rim (1 mm away) and at 3 mm; brightness [grey values of 255].
# Thicknesses and brightness were set so that layers lie, and are as bright, as in the means of 15 normal B-scans of
# Kermany et al. 2018: 221 um at the fovea's bottom, 341 um (302 to 363) 1 mm away. For norms of each layer on the
# Spectralis see Nieves-Moreno et al., PLoS ONE 13(3), e0194169, 2018. From the vitreous down.
_LAYERS: dict[str, tuple[float, float, float, float]] = {
    "nerve fibres": (3.0, 20.0, 15.0, 115.0),
    "ganglion cells": (3.0, 55.0, 36.0, 97.0),
    "inner plexiform": (4.0, 42.0, 31.0, 101.0),
    "inner nuclear": (4.0, 40.0, 33.0, 72.0),
    "outer plexiform": (8.0, 33.0, 27.0, 88.0),
    "outer nuclear": (92.0, 62.0, 52.0, 50.0),
    "limiting membrane": (8.0, 8.0, 8.0, 76.0),
    "inner segments": (22.0, 16.0, 15.0, 58.0),
    "ellipsoid zone": (16.0, 18.0, 18.0, 170.0),
    "outer segments": (28.0, 11.0, 11.0, 96.0),
    "fluid below": (0.0, 0.0, 0.0, 0.0),
    "pigment epithelium": (33.0, 33.0, 32.0, 184.0),
    "deposit": (0.0, 0.0, 0.0, 105.0),
}
LAYERS: tuple[str, ...] = tuple(_LAYERS)
_OUTER_NUCLEAR = LAYERS.index("outer nuclear")
_LIFTED_OVER = 14.0  # columns over which what lies above a mound is lifted


@dataclass(eq=False)
class Retina:
    """Layers over a B-scan's columns.

    Attributes:
        bruch: `(X,)` Bruch's membrane [pixels from the top], which no lesion moves.
        thickness: `(layer, X)` [pixels], in the order of `LAYERS`.
        grey: `(layer, X)` brightness [grey values of 255] before speckle.
        cysts: of fluid within a layer: layer, middle and half width [pixels], middle and half height as shares of it.
    """

    bruch: Array
    thickness: Array
    grey: Array
    cysts: list[tuple[int, float, float, float, float]]

    def edges(self) -> Array:
        """Returns `(layer + 1, X)` [pixels from the top]: the inner limiting membrane first, Bruch's membrane last."""
        below = np.cumsum(self.thickness[::-1], axis=0)[::-1]
        return np.concatenate([self.bruch - below, self.bruch[None]])

    def cyst_cover(self, depth: int) -> Array:
        """Returns how far cysts cover each pixel, `(X, depth)`, 0 to 1, borders one pixel wide."""
        edges = self.edges()
        cover = np.zeros((self.bruch.size, depth), np.float32)
        rows = np.arange(depth, dtype=np.float32)
        for layer, middle, half_width, share, half_share in self.cysts:
            where = slice(max(int(middle - half_width), 0), min(int(middle + half_width) + 2, self.bruch.size))
            across = (np.arange(where.start, where.stop) - middle)[:, None] / half_width
            thick = self.thickness[layer, where, None]
            along = (rows - edges[layer, where, None] - share * thick) / np.maximum(half_share * thick, 1)
            radius = np.sqrt(across**2 + along**2)
            part = np.clip(0.5 + (1 - radius) * np.minimum(half_width, half_share * thick), 0, 1)
            cover[where] = np.maximum(cover[where], part)
        return cover


def healthy_retina(shape: tuple[int, int], rng: np.random.Generator) -> Retina:
    """Returns a person's layers: foveal pit anywhere or outside the scan, nerve fibres thicker to one side, tilted."""
    columns = np.arange(shape[0], dtype=np.float32)
    fovea = shape[0] * (0.5 + (rng.normal(0, 0.025) if rng.uniform() < 0.7 else rng.uniform(-0.6, 0.6)))
    aside_mm = abs(rng.normal(0, 0.06)) if rng.uniform() < 0.75 else rng.uniform(0.2, 2.5)
    along_mm = (columns - fovea) * LATERAL_UM / 1000
    away_mm = np.hypot(along_mm, aside_mm)
    pit, rim, far, grey = np.array(list(_LAYERS.values())).T[..., None]
    # Off the pit, layers thin from its rim outwards; within it, they give way from the inside.
    outward = np.clip((away_mm - 0.9) / 2.1, 0, None) ** 1.2
    risen = 1 - np.exp(-((away_mm / (0.52 * np.exp(rng.normal(0, 0.12)))) ** 1.9))
    thickness = (pit + (np.maximum(rim + (far - rim) * outward, 0.5 * far) - pit) * risen) / AXIAL_UM
    thickness *= np.exp(rng.normal(0, 0.05)) * np.exp(rng.normal(0, 0.05, (len(LAYERS), 1)))
    nasal = np.clip(float(rng.choice([-1, 1])) * along_mm / 2.5, 0, None)
    thickness[0] += rng.uniform(12, 30) / AXIAL_UM * nasal * risen
    thickness[:6] *= 1 + 0.03 * np.array([_wave(shape[0], 60, rng) for _ in range(6)])
    bends = np.linspace(-1, 1, shape[0]) * shape[0] / 512
    curved = min(17 * np.exp(rng.normal(0, 0.5)), 60)
    bruch = rng.normal(0, 26) * bends - curved * (bends - rng.normal(0, 0.15)) ** 2 + 0.6 * _wave(shape[0], 80, rng)
    bruch += (0.57 + rng.normal(0, 0.05)) * shape[1] - bruch.mean()
    highest = (bruch - thickness.sum(axis=0)).min()
    bruch += max(10 - highest, 0) - max(bruch.max() - (shape[1] - 20), 0)
    levels = np.repeat(grey * np.exp(rng.normal(0, 0.05, grey.shape)), shape[0], axis=1)
    levels[0] *= 1 + 0.4 * np.clip(nasal, 0, 1)
    levels[LAYERS.index("ellipsoid zone")] *= 0.75 + 0.25 * risen
    levels[LAYERS.index("outer segments")] *= 0.55 + 0.45 * risen
    return Retina(bruch.astype(np.float32), thickness.astype(np.float32), levels.astype(np.float32), [])


def add_lesion(retina: Retina, lesion: Lesion, rng: np.random.Generator) -> None:
    """Changes the layers as a disease does; Bruch's membrane, and columns that the lesion does not reach, stay.

    Args:
        retina: changed in place.
        lesion: `"drusen"`, `"fluid"` (cysts as in diabetic macular oedema), `"neovascular"`; `""` changes nothing.
        rng: of places and sizes.

    Raises:
        IntensityError: another lesion.
    """
    if lesion not in LESIONS:
        raise IntensityError(f"expected one of the lesions {', '.join(map(repr, LESIONS))}, got {lesion!r}")
    if lesion:
        {"drusen": _drusen, "fluid": _fluid, "neovascular": _neovascular}[lesion](retina, rng)


def _drusen(retina: Retina, rng: np.random.Generator) -> None:
    """Mounds of 40 to 300 um under the pigment epithelium, up to 90 um high."""
    width = retina.bruch.size
    middle = rng.uniform(0.35, 0.65) * width
    raised = np.zeros(width)
    for number in range(int(rng.integers(3, 10))):
        place = np.clip(middle + rng.uniform(-0.25, 0.25) * width * (number > 0), 0, width - 1)
        half = rng.uniform(8, 26)
        raised = np.maximum(raised, rng.uniform(0.35, 0.9) * min(half, 22) * _mound(width, place, half))
    _raise(retina, raised)
    _dim(retina, "ellipsoid zone", 0.25 * np.clip(raised / 6, 0, 1))


def _fluid(retina: Retina, rng: np.random.Generator) -> None:
    """Cysts between septa in the outer, and smaller ones in the inner nuclear layer, which swell and lift the rest."""
    width = retina.bruch.size
    middle, half = rng.uniform(0.35, 0.65) * width, rng.uniform(45, 120)
    swollen = _mound(width, middle, half)
    for name, most, size in (("outer nuclear", rng.uniform(12, 48), (5, 15)), ("inner nuclear", 12.0, (3, 8))):
        layer = LAYERS.index(name)
        retina.thickness[layer] += (most * swollen).astype(np.float32)
        place = middle - 0.75 * half
        while place < middle + 0.75 * half:
            column = int(np.clip(place, 0, width - 1))
            half_width = rng.uniform(*size) * (0.5 + swollen[column])
            height = rng.uniform(0.55, 0.92)
            share = 0.5 + rng.uniform(-0.4, 0.4) * (1 - height)
            if name == "outer nuclear" or rng.uniform() < 0.6:
                retina.cysts.append((layer, float(place), float(half_width), float(share), float(height / 2)))
            place += half_width * rng.uniform(1.5, 2.6) + 4


def _neovascular(retina: Retina, rng: np.random.Generator) -> None:
    """An uneven bright mass under the pigment epithelium, photoreceptors above it lost, fluid beside it below them."""
    width = retina.bruch.size
    middle, half = rng.uniform(0.35, 0.65) * width, rng.uniform(50, 120)
    mound = _mound(width, middle, half)
    raised = mound**0.7 * rng.uniform(14, 40) * np.clip(1 + 0.2 * _wave(width, 36, rng), 0.3, None)
    _raise(retina, raised)
    ill = np.clip(raised / 10, 0, 1)
    _dim(retina, "ellipsoid zone", 0.55 * ill)
    _dim(retina, "limiting membrane", 0.3 * ill)
    _dim(retina, "pigment epithelium", ill * np.clip(0.15 + 0.2 * _wave(width, 9, rng), 0, 0.6))
    retina.grey[LAYERS.index("deposit")] *= (1 + 0.2 * ill * _wave(width, 20, rng).clip(-2, 2)).astype(np.float32)
    beside = middle + float(rng.choice([-1, 1])) * half * rng.uniform(0.5, 0.9)
    _raise(retina, rng.uniform(8, 22) * _mound(width, beside, rng.uniform(35, 75)), "fluid below")


def _raise(retina: Retina, height: npt.NDArray[np.floating], layer: str = "deposit") -> None:
    """Makes a layer thicker; the outer nuclear layer gives way, and what lies above is lifted more smoothly."""
    retina.thickness[LAYERS.index(layer)] += height.astype(np.float32)
    room = retina.thickness[_OUTER_NUCLEAR]
    lifted = 0.45 * gaussian_filter1d(height, _LIFTED_OVER, mode="nearest", truncate=3)
    retina.thickness[_OUTER_NUCLEAR] += np.maximum(lifted - height, -0.85 * room).astype(np.float32)


def _dim(retina: Retina, layer: str, share: npt.NDArray[np.floating]) -> None:
    retina.grey[LAYERS.index(layer)] *= (1 - share).astype(np.float32)


def _mound(width: int, middle: float, half: float) -> npt.NDArray[np.float64]:
    """1 in the middle, 0 from `half` on, and smooth."""
    away = np.abs(np.arange(width) - middle) / half
    return np.asarray(np.cos(0.5 * np.pi * np.clip(away, 0, 1)) ** 2, dtype=np.float64)


def _wave(width: int, length: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return smooth_noise((width, 1, 1), length, rng)[:, 0, 0].astype(np.float64)
