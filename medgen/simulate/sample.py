"""The sample that the demonstration runs on: three simulated T1 scans, as different as a hospital's."""

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medgen.geometry import Grid
from medgen.simulate.brain import simulate_brain
from medgen.simulate.dicom import write_series
from medgen.simulate.signal import add_rician_noise, receive_field, t1_weighted


def head_grid(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], tilt_degrees: float = 0.0) -> Grid:
    """Returns a RAS grid with the simulated head in its middle.

    Args:
        shape: voxels along x, y and z.
        spacing_mm: between them.
        tilt_degrees: how far it is turned about the x axis and, half as far, about the z axis.
    """
    about_x, about_z = np.radians([tilt_degrees, tilt_degrees / 2])
    pitch = np.array([[1, 0, 0], [0, np.cos(about_x), -np.sin(about_x)], [0, np.sin(about_x), np.cos(about_x)]])
    yaw = np.array([[np.cos(about_z), -np.sin(about_z), 0], [np.sin(about_z), np.cos(about_z), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = pitch @ yaw @ np.diag(spacing_mm)
    affine[:3, 3] = np.array([0.0, -2.0, -8.0]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def sagittal(grid: Grid) -> Grid:
    """Returns the same lattice with slices from right to left, rows running to the back and columns to the feet."""
    order = np.array([[0, 0, -1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
    x, y, z = grid.shape
    order[:3, 3] = x - 1, y - 1, z - 1
    return Grid((y, z, x), grid.affine @ order)


def simulate_t1(grid: Grid, *, seed: int, head: bool = True) -> npt.NDArray[np.float32]:
    """Returns a T1-weighted scan `(X, Y, Z)` with shading and noise; without `head`, it is 0 outside the brain."""
    fractions = simulate_brain(grid, seed=seed, head=head)
    shaded = t1_weighted(fractions) * receive_field(grid, strength=0.08, seed=seed)
    noisy = add_rician_noise(shaded, 6.0, np.random.default_rng(seed))
    inside = np.asarray(sum(fractions.values())) > 0.5
    return noisy if head else noisy * inside


def write_sample(folder: Path, *, seed: int = 0) -> None:
    """Writes three T1 scans of three simulated people below `folder`.

    A whole head as NIfTI in the BIDS layout; a skull-stripped one with thick oblique slices; a sagittal DICOM series.
    """
    for name, grid, head in (
        ("sub-01", head_grid((96, 112, 104), (1.9, 1.95, 1.8)), True),
        ("sub-02", head_grid((112, 132, 30), (1.5, 1.45, 5.0), tilt_degrees=12.0), False),
    ):
        path = folder / name / "anat" / f"{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(np.rint(simulate_t1(grid, seed=seed, head=head)).astype(np.int16), grid.affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(grid.affine, code=1)
        image.set_sform(grid.affine, code=1)
        nib.save(image, path)
        seed += 1
    grid = sagittal(head_grid((64, 116, 112), (2.8, 1.9, 1.7), tilt_degrees=5.0))
    write_series(folder / "sub-03" / "dicom", simulate_t1(grid, seed=seed), grid.affine, "MR", seed=seed)
