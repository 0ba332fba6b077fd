"""Results to write: on oblique grids with unequal spacing, from NIfTI and from DICOM."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from pydicom import Dataset

from medgen.case import Case, OutputKind, Result
from medgen.geometry import Grid
from medgen.provenance import Provenance
from medgen.read.discover import find_cases
from medgen.simulate.dicom import write_series
from medgen.simulate.sample import head_grid, sagittal

T2 = OutputKind("T2w", "MR", "Synthetic T2-weighted")
CT = OutputKind("CT", "CT", "Synthetic CT", "HU")
DENOISED = OutputKind("CT", "CT", "Denoised CT", "HU", "denoised")
LABELS = OutputKind("dseg", "CT", "Made by organs", "label")
MADE_BY = Provenance("brain_t1_to_t2", "0.1.0", "ab" * 32, "cd" * 32, {"window": [96, 96, 96]})

Make = Callable[..., Result]
Edit = Callable[[nib.Nifti1Image], nib.Nifti1Image | None]


def result_of(
    case: Case,
    grid: Grid,
    kind: OutputKind = T2,
    *,
    image: npt.ArrayLike | None = None,
    flags: Sequence[str] = (),
    made_by: Provenance = MADE_BY,
) -> Result:
    rng = np.random.default_rng(7)
    if image is None:
        image = rng.uniform(-1000 if kind is CT else 0, 1500, grid.shape)
    image = np.asarray(image, dtype=np.float32)
    source = rng.uniform(0, 800, grid.shape).astype(np.float32)
    return Result(case, kind, image, source, grid, made_by, tuple(flags))


def nifti_case(path: Path, grid: Grid, *, name: str = "sub-01/anat/sub-01_T1w", edit: Edit | None = None) -> Case:
    """A case whose NIfTI file lies at `path`; `edit` changes its nibabel image before it is saved."""
    image = nib.Nifti1Image(np.arange(np.prod(grid.shape), dtype=np.int16).reshape(grid.shape), grid.affine)
    image.set_qform(grid.affine, code=1)
    image.header.set_xyzt_units("mm")
    if edit:
        image = edit(image) or image
    nib.save(image, path)
    extension = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    return Case(f"{name}{extension}", "nifti", (path,), PurePosixPath(name), PurePosixPath(path.name), extension)


@pytest.fixture
def oblique() -> Grid:
    return head_grid((13, 17, 11), (1.1, 0.9, 3.2), tilt_degrees=16.0)


@pytest.fixture
def from_nifti(tmp_path: Path, oblique: Grid) -> Make:
    """Makes results of a NIfTI case."""

    def make(kind: OutputKind = T2, **options: object) -> Result:
        return result_of(nifti_case(tmp_path / "in.nii.gz", oblique), oblique, kind, **options)

    return make


@pytest.fixture
def from_dicom(tmp_path: Path, oblique: Grid) -> Make:
    """Makes results of a sagittal DICOM series whose instances are numbered against their order in space."""

    def make(
        kind: OutputKind = T2,
        *,
        modality: str = "MR",
        tags: Mapping[str, Any] | None = None,
        edit: Callable[[Dataset, int], None] | None = None,
        **options: object,
    ) -> Result:
        grid = sagittal(oblique)
        voxels = np.random.default_rng(0).uniform(1, 900, grid.shape)

        def backwards(dataset: Dataset, index: int) -> None:
            dataset.InstanceNumber = 100 - index
            if edit:
                edit(dataset, index)

        write_series(tmp_path / "series", voxels, grid.affine, modality, tags=tags, edit=backwards)
        (case,) = find_cases(tmp_path / "series", salt=b"salt")
        return result_of(case, case.grid, kind, **options)

    return make
