"""A trunk in CT numbers by formula: organs as ellipsoids, without noise, so that a scanner can be simulated on it.

It shows that a pipeline runs, and gives known edges and contrasts to measure on; nothing can be learnt from it about
people.
"""

import numpy as np
import numpy.typing as npt

from medgen.geometry import Grid

Array = npt.NDArray[np.float32]

_BODY_MM = (165.0, 115.0)  # half axes to the sides and to the front
_FAT_MM = 18.0
_EDGE_MM = 1.0
# Name: HU, middle and half axes [mm] in RAS with the origin in the body's middle; along z organs are long.
_ORGANS: tuple[tuple[str, float, tuple[float, float, float], tuple[float, float, float]], ...] = (
    ("liver", 105.0, (65.0, 10.0, 0.0), (70.0, 72.0, 90.0)),
    ("spleen", 115.0, (-105.0, -35.0, 10.0), (28.0, 42.0, 60.0)),
    ("right kidney", 160.0, (62.0, -58.0, -40.0), (24.0, 26.0, 55.0)),
    ("left kidney", 160.0, (-62.0, -58.0, -30.0), (24.0, 26.0, 55.0)),
    ("stomach", 25.0, (-55.0, 35.0, 10.0), (42.0, 32.0, 60.0)),
    ("gas", -900.0, (-55.0, 52.0, 10.0), (26.0, 12.0, 40.0)),
    ("aorta", 190.0, (-10.0, -35.0, 0.0), (11.0, 11.0, 400.0)),
    ("cortex of the spine", 600.0, (0.0, -68.0, 0.0), (24.0, 20.0, 400.0)),
    ("marrow of the spine", 200.0, (0.0, -68.0, 0.0), (20.0, 16.0, 400.0)),
    ("spinal canal", 25.0, (0.0, -92.0, 0.0), (9.0, 8.0, 400.0)),
)
_VESSELS = 14


def trunk_hu(grid: Grid, seed: int = 0) -> Array:
    """Returns a trunk `(X, Y, Z)` `[HU]`, arms up, in the middle of a grid; people of other seeds have other organs.

    Args:
        grid: RAS; what lies outside the body is air.
        seed: of sizes, places and CT numbers, and of the vessels of the liver.
    """
    rng = np.random.default_rng(seed)
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1).astype(np.float32)
    middle = (np.array(grid.shape) - 1) / 2
    places = (indices - middle.astype(np.float32)) @ grid.affine[:3, :3].T.astype(np.float32)
    size = rng.uniform(0.85, 1.1)
    body = np.array([*_BODY_MM, 1e6]) * size
    image = np.full(grid.shape, -1000.0, dtype=np.float32)
    _fill(image, _inside(places, np.zeros(3), body), -105.0 + 8 * rng.normal())
    _fill(image, _inside(places, np.zeros(3), body - _FAT_MM * rng.uniform(0.6, 1.4)), 50.0 + 5 * rng.normal())
    for name, hu, centre, axes in _ORGANS:
        moved = size * (np.array(centre) + rng.normal(scale=3.0, size=3))
        share = _inside(places, moved, size * np.array(axes) * rng.uniform(0.9, 1.1, size=3))
        _fill(image, share, hu + 5 * rng.normal())
        if name == "liver":
            _add_vessels(image, places, share, moved, rng)
    return image


def _add_vessels(
    image: Array, places: Array, liver: Array, centre: npt.NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Draws straight vessels of 1 to 5 mm through the liver, brighter than it."""
    for _ in range(_VESSELS):
        through = centre + rng.uniform(-45, 45, size=3)
        along = rng.normal(size=3) * (1, 1, 2)
        along /= np.linalg.norm(along)
        away = places - through.astype(np.float32)
        distance = np.linalg.norm(
            away - (away @ along.astype(np.float32))[..., None] * along.astype(np.float32), axis=-1
        )
        _fill(
            image, np.clip(0.5 + (rng.uniform(1.0, 5.0) - distance) / _EDGE_MM, 0, 1) * liver, 150.0 + 10 * rng.normal()
        )


def _inside(places: Array, centre: npt.NDArray[np.float64], axes: npt.NDArray[np.float64]) -> Array:
    """The share of each voxel that an ellipsoid fills, its border blurred over a millimetre."""
    scaled = (places - centre.astype(np.float32)) / axes.astype(np.float32)
    radius = np.sqrt(np.square(scaled).sum(axis=-1))
    depth = (1 - radius) * float(np.min(axes))
    return np.asarray(np.clip(0.5 + depth / _EDGE_MM, 0, 1), dtype=np.float32)


def _fill(image: Array, share: Array, hu: float) -> None:
    image += share * (np.float32(hu) - image)
