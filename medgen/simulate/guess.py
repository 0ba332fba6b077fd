"""What an MR of somebody might look like of whom there is a CT alone.

CT numbers tell air, fat, fluid, flesh, marrow and cortical bone apart, and where a voxel lies tells a tissue from the
edge of two others. What a T1-weighted scanner makes of tissues is known up to ranges. That is no pair: flesh is told
apart by CT numbers a few HU apart, and nothing is measured. It tells a network that learns without pairs what is dark.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt, gaussian_filter, grey_closing, maximum_filter, minimum_filter

from medgen.simulate.head import random_mr
from medgen.simulate.signal import AIR_HU, add_rician_noise

Array = npt.NDArray[np.float32]

_FAT_HU, _FLUID_HU, _GREY_HU, _FLESH_HU, _DENSE_HU = -95.0, 18.0, 37.0, 50.0, 90.0
_TOUCHES_AIR_HU, _LEAST_WATER_HU, _LEAST_BONE_HU = -300.0, -20.0, 200.0
# Shares of brain, fluid and muscle by the CT number of flesh [HU], where no fat is near; see `RELAXATION`.
_FLESH_NODES = (-60.0, -20.0, _FLUID_HU, 22.0, 30.0, _GREY_HU, 46.0, 56.0)
_FLESH_SHARES = {
    "fat": (1, 0, 0, 0, 0, 0, 0, 0),
    "csf": (0, 1, 1, 0, 0, 0, 0, 0),
    "white": (0, 0, 0, 1, 1, 0, 0, 0),
    "grey": (0, 0, 0, 0, 0, 1, 1, 0),
    "muscle": (0, 0, 0, 0, 0, 0, 0, 1),
}


def guess_fractions(ct_hu: npt.ArrayLike, rng: np.random.Generator) -> dict[str, Array]:
    """Guesses the fraction of each tissue in each voxel of a CT, adding up to at most 1; the rest is air.

    Within bone, what is less dense than its tables is marrow; at its rim the same CT number is an edge. A voxel at an
    edge is what lies beside it, in parts, not the tissue whose CT number the parts happen to add up to: at bone the
    flesh next to it, at air skin or mucosa, at fluid grey matter, near fat muscle. How dense tables and marrow are, and
    whether mucosa shows between bone and air, is drawn.

    Args:
        ct_hu: `(X, Y, Z)` `[HU]`, voxels of 1 to 2 mm.
        rng: of what is drawn.

    Returns:
        `fat`, `csf`, `white`, `grey`, `muscle`, `marrow` and `cortex`, each `(X, Y, Z)`.
    """
    ct = np.asarray(ct_hu, dtype=np.float32)
    by_air = minimum_filter(ct, 3) < _TOUCHES_AIR_HU
    by_dense = maximum_filter(ct, 3) > _DENSE_HU
    flesh = _flesh_around(ct, by_air, by_dense)
    solid = np.where(by_air, np.clip((ct - AIR_HU) / (_FLESH_HU - AIR_HU), 0, 1), 1.0)
    bone = _bone_parts(ct, flesh, solid, by_air, by_dense, rng)
    left = np.clip(solid - bone["cortex"] - bone["marrow"], 0, 1)
    fat_near = gaussian_filter(((ct > -160) & (ct < _LEAST_WATER_HU) & ~by_air).astype(np.float32), 2.5) > 0.05
    soft = _soft_shares(flesh, fat_near, by_air)
    return bone | {name: (left * share).astype(np.float32) for name, share in soft.items()}


def _bone_parts(
    ct: Array,
    flesh: Array,
    solid: npt.NDArray[Any],
    by_air: npt.NDArray[np.bool_],
    by_dense: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> dict[str, Array]:
    """The fractions of `cortex` and `marrow`: within bone told apart by density, at its rim and at air cortex alone."""
    table_hu, marrow_hu, lined = rng.uniform(900, 1500), rng.uniform(100, 400), rng.uniform() < 0.8
    by_bone = maximum_filter(ct, 3) > _LEAST_BONE_HU + 100
    within_bone = minimum_filter(grey_closing(ct, size=5), 3) > _LEAST_BONE_HU
    # Beside air, a bright edge is bone; a dim one is bone in part, or its lining.
    edge = np.float32(ct > 150) if lined else np.float32(by_bone)
    rim = np.clip((ct - flesh) / (table_hu - flesh), 0, 1) * by_dense
    inner = np.clip((ct - marrow_hu) / (table_hu - marrow_hu), 0, 1)
    deep = within_bone & (ct > _DENSE_HU) & ~by_air
    cortex = np.where(by_air, solid * edge, np.where(deep, inner, rim)).astype(np.float32)
    return {"cortex": cortex, "marrow": np.where(deep, 1 - inner, 0).astype(np.float32)}


def _soft_shares(flesh: Array, fat_near: npt.NDArray[np.bool_], by_air: npt.NDArray[np.bool_]) -> dict[str, Array]:
    """The share of each soft tissue in what is not bone, by the CT number of flesh there and by what lies beside it."""
    fat = np.clip((_FLESH_HU - flesh) / (_FLESH_HU - _FAT_HU), 0, 1)
    near = {"fat": np.where(by_air, 0, fat), "muscle": np.where(by_air, 1, 1 - fat)}  # skin and mucosa lie at air
    by_fluid = (minimum_filter(flesh, 3) < _FLUID_HU) & (flesh > _FLUID_HU)
    fluid = np.clip((_GREY_HU - flesh) / (_GREY_HU - _FLUID_HU), 0, 1)
    edge_of_fluid = {"csf": fluid, "grey": 1 - fluid}
    shares = {}
    for name, nodes in _FLESH_SHARES.items():
        share = np.where(by_fluid, edge_of_fluid.get(name, 0.0), np.interp(flesh, _FLESH_NODES, nodes))
        shares[name] = np.where(fat_near | by_air, near.get(name, 0.0), share)
    return shares


def _flesh_around(ct: Array, by_air: npt.NDArray[np.bool_], by_dense: npt.NDArray[np.bool_]) -> Array:
    """The CT number of flesh in each voxel, or of the nearest that is flesh alone `[HU]`; muscle's where there is none.

    Smoothed a little, as CT noise would else pass for anatomy.
    """
    flesh = (ct > -200) & (ct < _DENSE_HU) & ~by_air & ~by_dense
    if not flesh.any():
        return np.full(ct.shape, _FLESH_HU, dtype=np.float32)
    share = flesh.astype(np.float32)
    smooth = gaussian_filter(ct * share, 0.5) / np.maximum(gaussian_filter(share, 0.5), 1e-3)
    nearest = distance_transform_edt(~flesh, return_distances=False, return_indices=True)
    return np.asarray(smooth[tuple(nearest)], dtype=np.float32)


def guess_mr(ct_hu: npt.ArrayLike, rng: np.random.Generator, variety: float = 1.0, voxel_mm: float = 1.0) -> Array:
    """Draws a T1-weighted magnitude image `(X, Y, Z)` for a CT of the same shape `[HU]`, white matter at 0.3 to 1.5.

    What it shows is what `guess_fractions` makes of the CT; sequence, coil falloff and noise are drawn, as widely as
    `random_mr` draws them at this `variety` for voxels of `voxel_mm`. After the domain randomisation of Billot et al.,
    "SynthSeg", Medical Image Analysis 86, 2023.
    """
    image = random_mr(guess_fractions(ct_hu, rng), rng, variety, voxel_mm)
    image *= np.float32(np.exp(rng.uniform(np.log(0.3), np.log(1.5))))  # where fat is bright, it sets the scale
    return add_rician_noise(image, rng.uniform(0, 0.06), rng)
