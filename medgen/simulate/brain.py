"""A brain by formula: fractions of six tissues on any grid, from ellipsoids folded by smooth noise.

Everything is a function of the position in millimetres (RAS+, origin at the centre of the cerebrum), never of the
voxel index. The same seed therefore gives the same anatomy on every grid: a thick oblique scan and an isotropic one
show the same person.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from medgen.geometry import Grid

Array = npt.NDArray[np.float32]

TISSUES = ("csf", "grey", "white", "bone", "fat", "muscle")

# Voxels coarser than this are averaged over several points along that axis, as a scanner averages over a thick slice.
SAMPLE_MM = 1.6

# Centre and semi-axes [mm] on the right; `_mirrored` adds the left.
_VENTRICLES = (
    ((10.0, 8.0, 14.0), (5.5, 26.0, 7.5)),  # body and frontal horn
    ((17.0, -26.0, 10.0), (7.5, 20.0, 9.0)),  # trigone and occipital horn
    ((31.0, -18.0, -16.0), (3.5, 16.0, 3.5)),  # temporal horn
)
_DEEP_GREY = (
    ((12.0, -14.0, 3.0), (8.0, 13.0, 8.0)),  # thalamus
    ((18.5, 16.0, 10.0), (4.0, 10.0, 8.0)),  # head of the caudate
    ((27.0, 3.0, 0.0), (5.5, 16.0, 9.0)),  # putamen
)
_MIDLINE_CSF = (
    ((0.0, -10.0, 0.0), (2.0, 13.0, 9.0)),  # third ventricle
    ((0.0, -40.0, -38.0), (7.0, 5.0, 9.0)),  # fourth ventricle
)
_FOLD_MM, _FINE_FOLD_MM, _FOLIA_MM = 25.0, 13.0, 9.0


@dataclass(frozen=True)
class _Waves:
    """A smooth random field: plane waves of one length in random directions; mean 0, variance 1."""

    vectors: Array
    phases: Array

    @classmethod
    def of(cls, length_mm: float, rng: np.random.Generator, count: int = 16) -> "_Waves":
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        jitter = rng.uniform(0.8, 1.25, size=(count, 1))
        phases = rng.uniform(0, 2 * np.pi, size=count)
        return cls((2 * np.pi / length_mm * jitter * directions).astype(np.float32), phases.astype(np.float32))

    def __call__(self, points: Array) -> Array:
        total = np.zeros(points.shape[1:], dtype=np.float32)
        for vector, phase in zip(self.vectors, self.phases, strict=True):
            total += np.cos(np.tensordot(vector, points, axes=1) + phase)
        return np.asarray(total * np.float32(np.sqrt(2 / len(self.phases))))


def _column(vector: npt.ArrayLike) -> Array:
    """A 3-vector that broadcasts against points `(3, X, Y, Z)`."""
    return np.asarray(vector, dtype=np.float32).reshape(3, 1, 1, 1)


def _depth_mm(points: Array, centre: tuple[float, ...], radii: tuple[float, ...]) -> Array:
    """Distance below the surface of an ellipsoid, negative outside, to first order `[mm]`."""
    semi_axes = _column(radii)
    scaled = (points - _column(centre)) / semi_axes
    level = np.sqrt((scaled**2).sum(axis=0))
    slope = np.sqrt(((scaled / semi_axes) ** 2).sum(axis=0))
    return np.asarray((1 - level) * level / np.maximum(slope, 1e-3))


def _mirrored(points: Array) -> Array:
    """The points with the left half reflected onto the right."""
    return np.stack([np.abs(points[0]), points[1], points[2]])


def _deepest(points: Array, ellipsoids: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]) -> Array:
    """Depth below the surface of a union of ellipsoids `[mm]`."""
    return np.asarray(np.max([_depth_mm(points, centre, radii) for centre, radii in ellipsoids], axis=0))


def _hull_mm(points: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Depths below the surfaces of cerebrum, cerebellum and brain stem `[mm]`; the second displaces the first."""
    size = rng.uniform(0.95, 1.05, size=3)
    wobble = 1.2 * _Waves.of(70.0, rng)(points)
    cerebrum = _depth_mm(points, (0.0, 0.0, 4.0), (65 * size[0], 82 * size[1], 60 * size[2])) + wobble
    cerebellum = _depth_mm(points, (0.0, -50.0, -44.0), (50.0, 30.0, 24.0)) + 0.5 * wobble
    stem = _depth_mm(points, (0.0, -24.0, -52.0), (13.0, 13.0, 50.0))
    return np.minimum(cerebrum, -cerebellum - 1.5), cerebellum, stem


def _below_pia_mm(points: Array, cerebrum: Array, rng: np.random.Generator) -> Array:
    """Distance to the nearest fluid on the surface or in a sulcus of the cerebrum `[mm]`.

    A sulcus is a sheet where a smooth random field crosses zero; it ends some 17 mm below the surface. The fissure
    between the hemispheres and the two Sylvian fissures are sheets of their own.
    """
    x, y, z = points
    folds = _Waves.of(_FOLD_MM, rng, 24)(points) + 0.35 * _Waves.of(_FINE_FOLD_MM, rng, 24)(points)
    floor = 17 + 4 * _Waves.of(45.0, rng)(points)
    sulci = np.abs(folds) * (_FOLD_MM / (2 * np.pi)) + 0.8 * np.maximum(cerebrum - floor, 0)
    core = _depth_mm(points, (0.0, -6.0, -4.0), (60.0, 46.0, 30.0))
    midline = np.abs(x + 0.8 * _Waves.of(50.0, rng)(points)) + np.maximum(core, 0)
    slanted = np.abs(z + 6 - 0.3 * y + 2 * _Waves.of(30.0, rng)(points))
    sylvian = slanted + np.maximum(cerebrum - 26, 0) + np.maximum(np.abs(y - 4) - 32, 0) + np.maximum(24 - np.abs(x), 0)
    return np.asarray(np.min([cerebrum, sulci, midline, sylvian], axis=0))


class _Canvas:
    """Tissue fractions onto which structures are painted, from the outside in."""

    def __init__(self, shape: tuple[int, ...], width_mm: float) -> None:
        self.fractions = {name: np.zeros(shape, dtype=np.float32) for name in TISSUES}
        self.width_mm = width_mm

    def paint(self, depth_mm: Array, **mixture: float) -> None:
        """Replaces what lies below a surface by a mixture, over the width of one voxel across the surface."""
        cover = np.clip(0.5 + depth_mm / self.width_mm, 0, 1).astype(np.float32)
        for name in self.fractions:
            self.fractions[name] += cover * (mixture.get(name, 0.0) - self.fractions[name])


def _anatomy(points: Array, width_mm: float, seed: int, head: bool) -> dict[str, Array]:
    """Tissue fractions at points `(3, X, Y, Z)` [mm]."""
    rng = np.random.default_rng(seed)
    cerebrum, cerebellum, stem = _hull_mm(points, rng)
    hull = np.max([cerebrum, cerebellum, stem], axis=0)
    pia = _below_pia_mm(points, cerebrum, rng)
    folds = 2 * np.abs(_Waves.of(_FOLIA_MM, rng)(points)) + 0.5 * np.maximum(cerebellum - 8, 0)
    folia = np.minimum(folds, cerebellum).astype(np.float32)
    thickness = _Waves.of(60.0, rng)(points)
    canvas = _Canvas(points.shape[1:], width_mm)
    if head:
        skull: Array = 7 + 0.5 * thickness
        scalp: Array = skull + 4 + 0.6 * thickness
        neck = np.asarray(np.minimum(52 - np.hypot(points[0], (points[1] + 30) / 1.1), -points[2] - 40))
        canvas.paint(np.maximum(hull + scalp + 2.5, neck + 4), muscle=1.0)
        canvas.paint(np.maximum(hull + scalp, neck), fat=0.8, muscle=0.2)
        canvas.paint(np.minimum(np.maximum(hull + scalp, neck) - 5, -points[2] - 50), muscle=0.95, fat=0.05)
        canvas.paint(hull + skull, bone=1.0)
        canvas.paint(np.minimum(hull + skull - 2, -hull - 4.5), bone=0.6, fat=0.4)  # marrow between the tables
    canvas.paint(hull + (2.0 if head else 0.5), csf=1.0)
    canvas.paint(pia - 0.6, grey=1.0)
    canvas.paint(pia - 4.2, white=1.0)
    canvas.paint(folia - 0.4, grey=1.0)
    canvas.paint(folia - 2.0, white=0.8, grey=0.2)
    canvas.paint(stem - 1.0, white=0.85, grey=0.15)
    canvas.paint(_deepest(_mirrored(points), _DEEP_GREY) + 0.5 * thickness, grey=0.7, white=0.3)
    canvas.paint(_deepest(_mirrored(points), _VENTRICLES) + 0.5 * thickness, csf=1.0)
    canvas.paint(_deepest(points, _MIDLINE_CSF), csf=1.0)
    return canvas.fractions


def _subvoxels(spacing: tuple[float, float, float]) -> Iterator[tuple[float, ...]]:
    """Offsets within a voxel, in voxels, at which it is sampled."""
    counts = [max(1, round(step / SAMPLE_MM)) for step in spacing]
    return product(*[((np.arange(n) + 0.5) / n - 0.5).tolist() for n in counts])


def simulate_brain(grid: Grid, *, seed: int = 0, head: bool = True) -> Mapping[str, Array]:
    """Returns the fraction of each tissue in each voxel of a grid.

    Args:
        grid: where to sample; the origin of its RAS+ space is the centre of the cerebrum, and the head reaches about
            80 mm to the sides, 100 mm to front and back and 80 mm up.
        seed: the person; folding, size and skull differ from one to another.
        head: with skull, scalp and neck, or the brain alone as after skull stripping.

    Returns:
        A map from each of `TISSUES` to an array `(X, Y, Z)` in [0, 1]. They add up to at most 1; the rest is air.
    """
    axes = [np.arange(n, dtype=np.float32) for n in grid.shape]
    indices = np.stack(np.meshgrid(*axes, indexing="ij"))
    affine = grid.affine.astype(np.float32)
    width_mm = float(min(SAMPLE_MM, math.prod(grid.spacing_mm) ** (1 / 3)))
    offsets = list(_subvoxels(grid.spacing_mm))
    total = {name: np.zeros(grid.shape, dtype=np.float32) for name in TISSUES}
    for offset in offsets:
        points = np.tensordot(affine[:3, :3], indices + _column(offset), axes=1) + _column(affine[:3, 3])
        for name, fraction in _anatomy(points, width_mm, seed, head).items():
            total[name] += fraction / np.float32(len(offsets))
    return total
