"""Which axes of an array are turned and flipped so that they run along given directions of the patient."""

import nibabel.orientations as directions
import numpy as np
import numpy.typing as npt

from medgen.geometry import Array

Turn = npt.NDArray[np.float64]  # for each axis where it goes, and 1 or -1 for its direction


def turn_to(affine: Array, codes: str) -> Turn:
    """Returns what turns an array with this affine so that its axes run along `codes`, as nibabel understands them.

    Args:
        affine: of the array, RAS+.
        codes: a letter for each axis, `"RAS"`; empty for the closest of the RAS directions, in the array's own order.
    """
    here = directions.io_orientation(affine)
    return np.asarray(directions.ornt_transform(here, directions.axcodes2ornt(codes)) if codes else here)


def codes_of(affine: Array) -> str:
    """Returns the directions of an array's axes, as nibabel names them."""
    return "".join(directions.aff2axcodes(affine))


def turned(voxels: npt.NDArray[np.float32], affine: Array, turn: Turn) -> tuple[npt.NDArray[np.float32], Array]:
    """Returns voxels `(C, X, Y, Z)`, as a view, and their affine after a turn."""
    shape = voxels.shape[1:]
    flipped = voxels[(slice(None), *(slice(None, None, -1 if side < 0 else 1) for side in turn[:, 1]))]
    order = (0, *(int(axis) + 1 for axis in np.argsort(turn[:, 0])))
    return flipped.transpose(order), np.asarray(affine @ directions.inv_ornt_aff(turn, shape))
