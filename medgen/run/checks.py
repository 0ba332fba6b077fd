"""What a result has to be before it is written: finite, a label map of whole numbers, on a grid that is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medgen.case import OutputKind
from medgen.errors import GeometryError, IntensityError, OutputError
from medgen.geometry import Grid

OWN_GRID_FLAG = "own-grid"


@dataclass(frozen=True, eq=False)
class Laid:
    """Voxels `(X, Y, Z)` and where they lie."""

    voxels: npt.NDArray[np.float32]
    grid: Grid


def require_one_channel(shape: Sequence[int], name: str) -> None:
    """Refuses what the postprocessing of the bundle `name` left, unless it has this shape: `(1, X, Y, Z)`.

    Raises:
        GeometryError: there are other than three axes beside the channels.
        OutputError: there are several channels.
    """
    if len(shape) != 4:
        raise GeometryError(f"expected a channel and 3 dimensions from {name}, got shape {tuple(shape)}")
    if shape[0] != 1:
        raise OutputError(
            f"expected one channel from the postprocessing of {name}, got {shape[0]}; "
            "for a segmentation, let it end in AsDiscreted(argmax=True)"
        )


def require_sound(image: npt.NDArray[np.float32], name: str, output: OutputKind) -> None:
    """Refuses voxels that cannot be a result.

    Args:
        image: of the result.
        name: of the bundle that made it.
        output: what it is.

    Raises:
        IntensityError: it holds NaN or infinity, or is a label map of other than whole numbers.
    """
    if not bool(np.isfinite(image).all()):
        raise IntensityError(f"expected finite voxels from {name}, got NaN or infinity; look for extremes in it")
    if output.unit == "label":
        _require_whole(image, name)


def under(made: Grid, given: Laid, seen: Laid, *, name: str, own: bool) -> Laid:
    """Returns what a result lies over: the input, or for a bundle from elsewhere the input as the network saw it.

    Args:
        made: grid of the result.
        given: the input.
        seen: what the preprocessing made of it.
        name: of the bundle.
        own: it comes with medgen, and so has to go back to the input's grid.

    Raises:
        GeometryError: the result lies on neither grid; or not on the input's, for a bundle that came with medgen.
    """
    difference = made.differs_from(given.grid)
    if not difference:
        return given
    if own or made.differs_from(seen.grid):
        raise GeometryError(
            f"expected the result of {name} on the input's grid, {given.grid.describe()}, got {difference}; "
            "its postprocessing should undo the preprocessing (Invertd)"
        )
    return Laid(seen.voxels, made)


def _require_whole(image: npt.NDArray[np.float32], name: str) -> None:
    between = image[image != np.rint(image)]
    if between.size:
        raise IntensityError(
            f"expected whole numbers in the label map of {name}, got {between.size} voxels such as "
            f"{between[0]:.3g}; its postprocessing should end in AsDiscreted, or its metadata not say segmentation"
        )
