"""The scan on which back ends are compared: simulated, the same everywhere, after the bundle's own preprocessing."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.case import Case
from medgen.errors import BundleError
from medgen.geometry import Grid
from medgen.run.bundle import OpenBundle
from medgen.run.predict import prepare
from medgen.simulate.oct import simulate_bscan
from medgen.simulate.sample import head_grid, simulate_t1
from medgen.simulate.trunk import trunk_hu

# Voxels along each axis of the two parts of a volume that are shown: two sizes of window, where windows adapt. The
# first is near what a window of a real scan is, since a back end's lead depends on it.
_SIDES = (128, 80)
_SEED = 5
_OCT_SPACING_MM = (0.0115, 0.00387, 0.24)


def reference_inputs(bundle: OpenBundle) -> list[torch.Tensor]:
    """Returns what a bundle's inferer is given of a simulated scan: batches of one, `(1, C, *spatial)`, in host memory.

    The scan is a head (MR), a trunk (CT) or a B-scan (OPT, OP), after the bundle's preprocessing. Of a large volume two
    parts of the middle are given, of different sizes.

    Raises:
        BundleError: the preprocessing cannot take it.
    """
    image = _simulated(bundle.metadata.modality_in)
    case = Case("reference", "nifti", (Path("reference.nii"),), PurePosixPath("reference"), PurePosixPath(), ".nii")
    try:
        item = prepare(bundle, case, image).item
    except Exception as error:  # a preprocessing from elsewhere may raise anything
        raise BundleError(
            f"the preprocessing of {bundle.name} cannot take the simulated reference scan ({type(error).__name__}), "
            "so no back end can be checked; take --backend torch"
        ) from error
    volume = torch.as_tensor(item[bundle.image_key]).as_subclass(torch.Tensor)[None].float()
    if volume.shape[-1] == 1:
        return [volume]
    wide = 2 * _SIDES[0] if volume.shape[-1] <= 16 else _SIDES[0]  # few slices are large ones
    return [_middle(volume, side) for side in (wide, _SIDES[1])]


def _middle(volume: torch.Tensor, side: int) -> torch.Tensor:
    """The middle of a volume, at most `side` voxels along each axis."""
    for axis in range(2, volume.ndim):
        size = min(volume.shape[axis], side)
        volume = volume.narrow(axis, (volume.shape[axis] - size) // 2, size)
    return volume.contiguous()


def _simulated(modality: str) -> MetaTensor:
    make: dict[str, Callable[[], tuple[np.ndarray, Grid]]] = {"CT": _trunk, "OPT": _bscan, "OP": _bscan}
    image, grid = make.get(modality, _head)()
    meta = {"medgen_flags": "", "modality": modality, "spatial_shape": np.array(grid.shape), "space": "RAS"}
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None], grid.affine, meta=meta)


def _head() -> tuple[np.ndarray, Grid]:
    grid = head_grid((96, 112, 104), (1.9, 1.95, 1.8))
    return simulate_t1(grid, seed=_SEED), grid


def _trunk() -> tuple[np.ndarray, Grid]:
    grid = Grid((256, 192, 16), np.diag([1.5, 1.5, 5.0, 1.0]))
    noise = np.random.default_rng(_SEED).normal(0, 20, grid.shape).astype(np.float32)
    return trunk_hu(grid, _SEED) + noise, grid


def _bscan() -> tuple[np.ndarray, Grid]:
    image = simulate_bscan(_SEED, lesion="drusen").image[..., None]
    lateral, axial, between = _OCT_SPACING_MM
    return image, Grid((*image.shape[:2], 1), np.diag([-lateral, -axial, between, 1.0]))
