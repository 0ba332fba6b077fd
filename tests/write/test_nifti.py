"""A NIfTI result lies exactly where its input lies, says so as the input does, and holds its values rounded."""

import gzip
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medgen.case import OutputKind
from medgen.errors import OutputError
from medgen.geometry import Grid
from medgen.read.nifti import read_nifti
from medgen.simulate.sample import head_grid
from medgen.write.nifti import write_nifti
from write.conftest import CT, LABELS, T2, Edit, Make, nifti_case, result_of

GEOMETRY = ("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_z")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 7.0)] * 3),
    tilt=st.floats(-60, 60),
    order=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
)
def test_output_grid_is_input_grid(
    tmp_path: Path,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    tilt: float,
    order: list[int],
    signs: tuple[int, int, int],
) -> None:
    affine = head_grid((3, 3, 3), spacing, tilt_degrees=tilt).affine
    affine[:3, :3] = (affine[:3, :3] * signs)[:, order]
    grid = Grid(shape, affine)
    case = nifti_case(tmp_path / "in.nii", grid)
    write_nifti(result_of(case, grid, image=np.full(shape, 3.0)), tmp_path / "out.nii")
    source, written = nib.load(tmp_path / "in.nii"), nib.load(tmp_path / "out.nii")
    assert written.shape == source.shape
    np.testing.assert_array_equal(written.affine, source.affine)
    assert nib.aff2axcodes(written.affine) == nib.aff2axcodes(source.affine)
    assert written.header.get_xyzt_units()[0] == "mm"


def only_qform(image: nib.Nifti1Image) -> None:
    image.set_sform(None, code=0)


def no_code(image: nib.Nifti1Image) -> None:
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)


def microns(image: nib.Nifti1Image) -> None:
    image.header.set_xyzt_units("micron", "msec")


def template_space(image: nib.Nifti1Image) -> None:
    image.set_sform(image.affine, code=4)
    image.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), code=2)


def big_endian(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(image.dataobj), None, image.header.as_byteswapped(">"))


def one_time_point(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(image.dataobj)[..., None], None, image.header)


def nifti2(image: nib.Nifti1Image) -> nib.Nifti2Image:
    return nib.Nifti2Image.from_image(image)


@pytest.mark.parametrize(
    "edit", [only_qform, no_code, microns, template_space, big_endian, one_time_point, nifti2], ids=lambda f: f.__name__
)
def test_the_header_states_the_grid_as_the_input_does(tmp_path: Path, oblique: Grid, edit: Edit) -> None:
    case = nifti_case(tmp_path / "in.nii.gz", oblique, edit=edit)
    source = nib.load(case.files[0])
    grid = Grid(oblique.shape, source.affine)
    write_nifti(result_of(case, grid), tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    assert type(written) is type(source)
    for field in GEOMETRY:
        np.testing.assert_array_equal(written.header[field], source.header[field], err_msg=field)
    np.testing.assert_array_equal(written.affine, source.affine)


def test_a_slice_without_a_third_axis_gives_one(tmp_path: Path, oblique: Grid) -> None:
    plane = np.arange(13 * 17, dtype=np.int16).reshape(13, 17)
    case = nifti_case(tmp_path / "in.nii.gz", oblique, edit=lambda image: nib.Nifti1Image(plane, image.affine))
    volume = read_nifti(case.files[0])
    assert volume.grid.shape == (13, 17, 1)
    assert np.array_equal(volume.image[..., 0], plane)
    write_nifti(result_of(case, volume.grid, CT, image=volume.image), tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    assert written.shape == (13, 17)
    assert np.array_equal(written.affine, nib.load(case.files[0]).affine)
    assert np.array_equal(np.asarray(written.dataobj), plane)


def test_nothing_else_of_the_source_header_is_carried_over(tmp_path: Path, oblique: Grid) -> None:
    def sign(image: nib.Nifti1Image) -> None:
        for field in ("descrip", "aux_file", "db_name", "intent_name"):
            image.header[field] = b"Doe^Jane"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane"))

    case = nifti_case(tmp_path / "in.nii", oblique, edit=sign)
    assert b"Doe^Jane" in case.files[0].read_bytes()
    write_nifti(result_of(case, oblique), tmp_path / "out.nii")
    assert b"Doe" not in (tmp_path / "out.nii").read_bytes()


def stored(path: Path) -> tuple[np.dtype, np.ndarray]:
    image = nib.load(path)
    return image.get_data_dtype(), np.asarray(image.dataobj)


def test_values_are_rounded_when_whole_numbers_are_fine_enough(tmp_path: Path, from_nifti: Make) -> None:
    result = from_nifti(T2)
    write_nifti(result, tmp_path / "out.nii")
    dtype, voxels = stored(tmp_path / "out.nii")
    assert dtype == np.int16
    np.testing.assert_array_equal(voxels, np.rint(result.image))
    write_nifti(result, tmp_path / "float.nii", keep_float=True)
    np.testing.assert_array_equal(stored(tmp_path / "float.nii")[1], result.image)


@pytest.mark.parametrize(
    ("kind", "low", "high", "dtype"),
    [
        (T2, 0.0, 1.0, np.float32),  # rounding would leave two values
        (T2, 0.0, 50_000.0, np.float32),  # would not fit
        (T2, -2000.0, 2000.0, np.int16),
        (CT, 0.0, 80.0, np.int16),  # whole CT numbers, however few
        (CT, -1024.0, 40_000.0, np.float32),
        (LABELS, 0.0, 3.0, np.int16),
    ],
)
def test_the_type_loses_nothing(
    tmp_path: Path, from_nifti: Make, oblique: Grid, kind: OutputKind, low: float, high: float, dtype: type
) -> None:
    image = np.linspace(low, high, np.prod(oblique.shape)).reshape(oblique.shape)
    write_nifti(from_nifti(kind, image=image), tmp_path / "out.nii")
    found, voxels = stored(tmp_path / "out.nii")
    assert found == dtype
    assert np.abs(voxels - image).max() <= (0.5 if dtype == np.int16 else 1e-6 * max(abs(low), abs(high)))


def test_a_regridded_result_gets_a_grid_of_its_own(tmp_path: Path, from_dicom: Make, oblique: Grid) -> None:
    result = from_dicom(T2)
    write_nifti(result, tmp_path / "out.nii.gz")
    image = nib.load(tmp_path / "out.nii.gz")
    assert Grid(image.shape, image.affine).differs_from(result.grid) == ""
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(image.header.get_qform(), image.affine, atol=1e-4)


def test_a_sheared_grid_is_stated_by_the_sform_alone(tmp_path: Path, from_nifti: Make, oblique: Grid) -> None:
    affine = oblique.affine.copy()
    affine[:3, 2] += 0.4 * affine[:3, 1]
    result = from_nifti(T2)
    write_nifti(result_of(result.case, Grid(oblique.shape, affine)), tmp_path / "out.nii")
    image = nib.load(tmp_path / "out.nii")
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert int(image.header["qform_code"]) == 0


def test_the_same_result_gives_the_same_bytes(
    tmp_path: Path, from_nifti: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = from_nifti(T2)
    write_nifti(result, tmp_path / "a.nii.gz")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_nifti(result, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_any_gzip_reads_what_was_written_and_learns_neither_name_nor_time(
    tmp_path: Path, from_nifti: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    result = from_nifti(T2)
    write_nifti(result, tmp_path / "out.nii.gz", keep_float=True)
    write_nifti(result, tmp_path / "out.nii", keep_float=True)
    packed = (tmp_path / "out.nii.gz").read_bytes()
    assert packed[3] == 0  # no optional field, so no name
    assert packed[4:8] == bytes(4)
    assert gzip.decompress(packed) == (tmp_path / "out.nii").read_bytes()


def test_a_voxel_that_is_not_a_number_never_reaches_a_file(tmp_path: Path, from_nifti: Make) -> None:
    result = from_nifti(T2)
    result.image[2, 3, 4] = np.nan
    with pytest.raises(OutputError, match="NaN"):
        write_nifti(result, tmp_path / "out.nii")
    assert not (tmp_path / "out.nii").exists()
