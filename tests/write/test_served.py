"""A result as a client asks for it: the same values in the same place, or a refusal; never wrapped, never clipped."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medgen.errors import OutputError
from medgen.geometry import Grid
from medgen.simulate.sample import head_grid
from medgen.write.served import DTYPES, EXTENSIONS, require_known, write_served
from write.conftest import CT, LABELS, T2, nifti_case, result_of

SHAPE = (5, 6, 7)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels, and the affine in RAS+, as another program has them."""
    if path.name.endswith((".nii", ".nii.gz")):
        image = nibabel.load(path)
        return np.asarray(image.dataobj), image.affine
    itk = SimpleITK.ReadImage(str(path))
    corner = np.array(itk.TransformIndexToPhysicalPoint((0, 0, 0)))
    ends = [np.array(itk.TransformIndexToPhysicalPoint(tuple(int(i == j) for i in range(3)))) for j in range(3)]
    affine = np.eye(4)
    affine[:3] = np.column_stack([*(end - corner for end in ends), corner])
    return SimpleITK.GetArrayFromImage(itk).T, np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_every_format_has_the_voxels_where_they_were(tmp_path: Path, extension: str, mirrored: bool) -> None:
    affine = head_grid(SHAPE, (0.7, 1.9, 3.1), tilt_degrees=23.0).affine
    affine[:3, 0] *= -1 if mirrored else 1
    grid = Grid(SHAPE, affine)
    result = result_of(nifti_case(tmp_path / "in.nii", grid), grid, image=np.arange(210.0).reshape(SHAPE) / 7)
    write_served(result, tmp_path / f"out{extension}")
    voxels, place = read(tmp_path / f"out{extension}")
    assert voxels.dtype == np.float32
    assert np.array_equal(voxels, result.image)
    assert np.allclose(place, affine, atol=1e-4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    low=st.floats(-70_000, 70_000, width=32),
    high=st.floats(-70_000, 70_000, width=32),
)
def test_hu_are_written_to_half_a_unit_or_refused(tmp_path: Path, dtype: str, low: float, high: float) -> None:
    grid = head_grid(SHAPE, (1.0, 1.0, 1.0))
    image = np.linspace(low, high, 210, dtype=np.float32).reshape(SHAPE)
    result = result_of(nifti_case(tmp_path / "in.nii", grid), grid, CT, image=image)
    path = tmp_path / "out.nii"
    path.unlink(missing_ok=True)
    fits = dtype.startswith("float") or (
        np.iinfo(dtype).min <= np.rint(image.min()) and np.rint(image.max()) <= np.iinfo(dtype).max
    )
    if fits:
        write_served(result, path, dtype)
        voxels, _ = read(path)
        assert voxels.dtype == dtype
        assert np.abs(voxels.astype(np.float64) - image).max() <= 0.5
    else:
        with pytest.raises(OutputError, match=f"expected values that fit {dtype}"):
            write_served(result, path, dtype)
        assert not path.exists()


def test_an_image_that_lies_between_two_whole_numbers_is_no_integer(tmp_path: Path) -> None:
    grid = head_grid(SHAPE, (1.0, 1.0, 1.0))
    case = nifti_case(tmp_path / "in.nii", grid)
    fractions = np.linspace(0, 1.4, 210).reshape(SHAPE)
    with pytest.raises(OutputError, match="expected values that whole numbers can tell apart, got 0 to 1 arbitrary"):
        write_served(result_of(case, grid, T2, image=fractions), tmp_path / "out.nii", "uint8")
    write_served(result_of(case, grid, T2, image=np.rint(fractions)), tmp_path / "whole.nii", "uint8")
    write_served(result_of(case, grid, LABELS, image=np.rint(fractions * 3)), tmp_path / "labels.nii", "uint8")
    assert read(tmp_path / "labels.nii")[0].max() == 4


def test_compression_is_a_matter_of_size(tmp_path: Path) -> None:
    grid = head_grid((30, 30, 30), (1.0, 1.0, 1.0))
    result = result_of(nifti_case(tmp_path / "in.nii", grid), grid, image=np.zeros((30, 30, 30)))
    for name, compress in (("small.nrrd", True), ("large.nrrd", False)):
        write_served(result, tmp_path / name, compress=compress)
    assert (tmp_path / "small.nrrd").stat().st_size * 10 < (tmp_path / "large.nrrd").stat().st_size
    assert np.array_equal(read(tmp_path / "small.nrrd")[0], read(tmp_path / "large.nrrd")[0])


def test_what_nobody_can_write_is_refused_before_the_work() -> None:
    require_known(".nrrd", "int16")
    with pytest.raises(OutputError, match=r"\.nrrd, \.mha, got '\.dcm'"):
        require_known(".dcm", "int16")
    with pytest.raises(OutputError, match="expected a result_dtype of float32"):
        require_known(".nii", "float16")
