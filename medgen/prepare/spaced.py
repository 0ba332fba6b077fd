"""Grids of another spacing, as MONAI's `Spacing` places them, in numpy alone."""

import itertools
from collections.abc import Sequence

import numpy as np

from medgen.prepare.planes import AFFINE_TOLERANCE, Array


def spaced_grid(
    affine: Array, shape: Sequence[int], pixdim: Sequence[float], *, diagonal: bool
) -> tuple[Array, tuple[int, ...]]:
    """Returns affine and shape of the grid that has this spacing.

    Args:
        affine: of the grid as it is, `(4, 4)`.
        shape: of it.
        pixdim: `[mm]`, three; one that is not above 0 keeps what is there.
        diagonal: whether the new axes are those of the patient.

    Source: `zoom_affine` and `compute_shape_offset` of MONAI 1.6.
    """
    axes = affine[:3, :3]
    here = np.sqrt(np.sum(axes * axes, axis=0))
    here[here == 0] = 1.0
    wanted = np.array(pixdim, dtype=np.float64)
    same = (wanted - AFFINE_TOLERANCE <= here) & (here <= wanted + AFFINE_TOLERANCE)
    wanted = np.where(same | ~(wanted > 0), here, wanted)
    target = np.eye(4)
    if diagonal:
        target[:3, :3] = np.diag(wanted)
    else:
        upper = np.linalg.cholesky(axes.T @ axes).T
        target[:3, :3] = axes @ np.linalg.inv(upper) @ np.diag(np.sign(np.diag(upper)) * wanted)
    size, target[:3, 3] = _shape_and_origin(affine, target, shape)
    return target, size


def _shape_and_origin(affine: Array, target: Array, shape: Sequence[int]) -> tuple[tuple[int, ...], Array]:
    """How many voxels cover the image, and where the first lies: at a corner, else so that both middles coincide."""
    sides = np.array(shape, dtype=np.float64)
    corners = np.array(list(itertools.product(*((0.0, n - 1.0) for n in sides)))).T
    corners = np.concatenate((corners, np.ones_like(corners[:1])))
    seen = (np.linalg.solve(target, affine) @ corners)[:-1]
    size = np.round(np.ptp(seen, axis=1) + 1.0)
    there = affine @ corners
    for index in range(corners.shape[1]):
        if np.allclose(np.min(seen - seen[:, index : index + 1], 1), 0.0, rtol=AFFINE_TOLERANCE):
            return tuple(int(n) for n in size), there[:-1, index]
    middle = affine[:3, :3] @ (sides / 2.0) + affine[:3, 3] - target[:3, :3] @ (size / 2.0)
    return tuple(int(n) for n in size), middle
