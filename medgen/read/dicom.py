"""One DICOM series, in any number of files, becomes a volume."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medgen.errors import GeometryError, UnreadableError
from medgen.read.lattice import build_lattice, irregularity
from medgen.read.memory import require_memory
from medgen.read.pixels import fill_real_values
from medgen.read.planes import read_planes
from medgen.read.regrid import resample
from medgen.read.stacks import Stack, build_stacks
from medgen.read.volume import SLAB, Volume, put_slab, require_usable


def read_dicom(files: Sequence[Path], *, volume: str = "", allow_irregular: bool = False) -> Volume:
    """Reads the one volume that the files hold.

    Args:
        files: of one series, in any order; those that hold no volume image (localizers, screen saves) are left out.
        volume: which one, when the files hold several: the key of its `Stack`.
        allow_irregular: resample uneven or tilted slices onto a regular grid instead of refusing them.

    Raises:
        UnreadableError: a file is broken, or its codec is missing.
        GeometryError: no regular grid, or several volumes and none chosen.
        IntensityError: voxels are NaN, infinite or constant.
        TooLargeError: it would not fit in memory.
    """
    stacks = build_stacks(plane for file in files for plane in read_planes(file))
    usable = [s for s in stacks if not s.excluded and _is_part_of(s.key, volume)]
    if not usable:
        rules = sorted({s.excluded for s in stacks if s.excluded})
        raise UnreadableError(
            f"expected a volume in {len(files)} DICOM files, got none ({'; '.join(rules) or 'no images'})"
        )
    if len(usable) > 1:
        names = ", ".join(f"{len(s.planes)} slices{f' with {s.key}' if s.key else ''}" for s in usable)
        raise GeometryError(f"expected one volume in {len(files)} DICOM files, got {len(usable)}: {names}")
    return read_stack(usable[0], allow_irregular=allow_irregular)


def _is_part_of(key: str, volume: str) -> bool:
    """Says whether a key fits the volume asked for; the files of one volume alone need fewer words than the series."""
    return not volume or set(key.split(";")) - {""} <= set(volume.split(";"))


def read_stack(stack: Stack, *, allow_irregular: bool = False) -> Volume:
    """Decodes the planes of a stack into a volume on its grid.

    Raises:
        InputError: as `read_dicom`.
    """
    grid = stack.grid(allow_irregular=allow_irregular)
    require_memory(grid.shape, "series")
    planes = stack.planes
    lattice = build_lattice(planes)
    regrid = bool(irregularity(lattice))
    # Regridding needs all slices at once; else each slab is put in its place as it is read.
    depth = len(planes) if regrid else SLAB
    slices = np.empty((depth, planes[0].rows, planes[0].columns), dtype=np.float32)
    image = np.empty(grid.shape, dtype=np.float32)
    for first in range(0, len(planes), depth):
        some = planes[first : first + depth]
        for plane, out in zip(some, slices, strict=False):
            fill_real_values(plane, out)
        put_slab(image, first, resample(slices, lattice, grid) if regrid else slices[: len(some)])
    require_usable(image, "series")
    flags = ("regridded",) if regrid else ("single-slice",) if len(planes) == 1 else ()
    return Volume(image, grid, planes[0].modality, (*stack.flags, *flags))
