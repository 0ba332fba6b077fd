"""Labels of a head from an averaged CT and the maps of its brain: another anatomy than that of a labelled person."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.ndimage import (
    binary_dilation,
    binary_fill_holes,
    gaussian_filter,
    generate_binary_structure,
    label,
    maximum_filter,
    zoom,
)

from medgen.errors import IntensityError
from medgen.simulate.head import LABELS

Volume = npt.NDArray[np.float32]

LEAST_BONE_HU, AIR_HU = 70.0, -400.0
_LEAST_PLATE_HU, _ABOVE_AROUND_HU, _SHARE_OF_PEAK, _AROUND_VOXELS = 50.0, 10.0, 0.4, 4.0
_DARK, _MIDDLE, _STRETCH, _LOWEST_HU = 900.0, 200.0, 11.0, -1024.0
_FLUID_VOXELS = 6
_PEAK_VOXELS = 9


def cormack_to_hu(volume: npt.ArrayLike) -> Volume:
    """Turns Cormack units, in which soft tissue takes most of the range, back into CT numbers `[HU]`.

    Source: Rorden et al., NeuroImage 61:957, 2012, and the scripts of the Clinical toolbox: the 200 HU above -100 are
    stretched by 11. The darkest value is taken for -1024 HU, as 12-bit scanners store it; the template's white matter
    comes out at 20 HU then.

    Example:
        >>> cormack_to_hu([0.0, 900.0, 3100.0, 3600.0]).tolist()
        [-1024.0, -124.0, 76.0, 576.0]
    """
    x = np.asarray(volume, dtype=np.float32)
    stretched = np.clip(x - _DARK, 0, _MIDDLE * _STRETCH)
    return np.asarray(x - stretched * (1 - 1 / _STRETCH) + _LOWEST_HU, dtype=np.float32)


def template_labels(ct_hu: npt.ArrayLike, maps: Mapping[str, npt.ArrayLike]) -> npt.NDArray[np.uint8]:
    """Labels a head `(X, Y, Z)` as in `medgen.simulate.head.LABELS`: bone and air by threshold, brain by its maps.

    Averaging many heads blurs thick bone and nearly wipes out thin bone, so one threshold would either swell the vault
    or lose the base. Bone is what exceeds half of the highest value within 4 voxels, and 70 HU in any case: more than
    soft tissue has on average. Plates as thin as those of temple and base, of which averaging leaves less, are what
    exceeds 50 HU, its surroundings by 10 HU, and 0.4 of the highest value nearby, so that no thick bone swells.

    Args:
        ct_hu: CT `(X, Y, Z)` `[HU]`; isotropic voxels of about 1 mm.
        maps: fraction or probability of `csf`, `grey` and `white`, each `(X, Y, Z)`. What lies between them and the
            bone is taken for fluid.

    Raises:
        IntensityError: there is no head in the CT.
    """
    ct = np.asarray(ct_hu, dtype=np.float32)
    parts, count = label(ct > AIR_HU)
    if count == 0:
        raise IntensityError("expected a CT of a head in HU, got nothing above -400 HU")
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    solid = parts == int(sizes.argmax())
    head = np.stack([binary_fill_holes(solid[..., z]) for z in range(ct.shape[2])], axis=-1)
    peak = maximum_filter(ct, _PEAK_VOXELS)
    plates = (ct > _LEAST_PLATE_HU) & (ct > gaussian_filter(ct, _AROUND_VOXELS) + _ABOVE_AROUND_HU)
    bone = head & ((ct > np.maximum(LEAST_BONE_HU, peak / 2)) | (plates & (ct > _SHARE_OF_PEAK * peak)))
    labels = np.where(head, np.where(ct < AIR_HU, LABELS["air"], LABELS["soft"]), 0)
    order = ("csf", "grey", "white")
    shares = np.stack([np.asarray(maps[name], dtype=np.float32) for name in order])
    brain = (shares.sum(axis=0) > 0.5) & head & ~bone
    faces = generate_binary_structure(3, 1)
    near_brain = binary_dilation(brain, faces, iterations=_FLUID_VOXELS, mask=head & ~bone & (ct > AIR_HU))
    around = near_brain & binary_dilation(bone, faces, iterations=_FLUID_VOXELS)
    labels = np.where(around, LABELS["csf"], labels)
    labels = np.where(brain, np.array([LABELS[name] for name in order])[shares.argmax(axis=0)], labels)
    return np.asarray(np.where(bone, LABELS["bone"], labels), dtype=np.uint8)


def halve_voxels(volume: npt.ArrayLike) -> Volume:
    """Interpolates `(X, Y, Z)` to half the spacing, `(2X - 1, 2Y - 1, 2Z - 1)`; the first voxel stays where it is."""
    x = np.asarray(volume, dtype=np.float32)
    return np.asarray(zoom(x, [(2 * n - 1) / n for n in x.shape], order=1), dtype=np.float32)
