"""A derived series joins its source's study, lies on its grid, says that it is synthetic, and others can read it."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that SimpleITK's own documentation uses
from pydicom import Dataset
from pydicom.sr.codedict import codes

from medgen.case import OutputKind, Result
from medgen.errors import OutputError
from medgen.geometry import Grid, lps_to_ras
from medgen.provenance import Provenance
from medgen.read.discover import find_cases
from medgen.read.reader import read_image
from medgen.simulate.sample import head_grid, sagittal
from medgen.write import dicom
from medgen.write.dicom import write_dicom_series
from write.conftest import CT, DENOISED, LABELS, MADE_BY, T2, Make, nifti_case, result_of

# The release of dicom3tools in Debian 12 is older than this attribute (2023), and calls it unknown.
NEWER_THAN_DCIODVFY = "(0008,001c)"


def written(result: Result, folder: Path) -> list[Dataset]:
    write_dicom_series(result, folder)
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


def simpleitk_volume(folder: Path) -> tuple[np.ndarray, Grid]:
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), Grid(image.GetSize(), lps_to_ras(lps))


def at_same_places(voxels: np.ndarray, grid: Grid, image: np.ndarray, onto: Grid) -> np.ndarray:
    """Looks up the voxels of one grid at the centres of another that differs in the order of its axes only."""
    indices = np.stack(np.meshgrid(*map(np.arange, onto.shape), indexing="ij")).reshape(3, -1)
    places = np.linalg.inv(grid.affine) @ onto.affine @ np.vstack([indices, np.ones(indices.shape[1])])
    nearest = np.rint(places[:3]).astype(int)
    assert np.abs(places[:3] - nearest).max() < 0.01
    return voxels[tuple(nearest)].reshape(image.shape)


@pytest.mark.parametrize("kind", [T2, CT], ids=["MR", "CT"])
def test_medgen_and_simpleitk_read_values_and_place_back(tmp_path: Path, from_dicom: Make, kind: OutputKind) -> None:
    result = from_dicom(kind)
    written(result, tmp_path / "out")
    (case,) = find_cases(tmp_path / "out", salt=b"")
    again = read_image(case)
    assert Grid(result.grid.shape, again.affine.numpy()).differs_from(result.grid) == ""
    np.testing.assert_array_equal(again[0].numpy(), np.rint(result.image))
    voxels, grid = simpleitk_volume(tmp_path / "out")
    np.testing.assert_array_equal(at_same_places(voxels, grid, result.image, result.grid), np.rint(result.image))


@pytest.mark.parametrize("source", ["nifti", "dicom"])
def test_dcm2niix_reads_values_and_place_back(tmp_path: Path, from_nifti: Make, from_dicom: Make, source: str) -> None:
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix is not installed")
    result = (from_nifti if source == "nifti" else from_dicom)(T2)
    written(result, tmp_path / "out")
    (tmp_path / "nii").mkdir()
    subprocess.run(["dcm2niix", "-o", tmp_path / "nii", tmp_path / "out"], check=True, capture_output=True)
    image = nib.load(next((tmp_path / "nii").glob("*.nii")))
    voxels = at_same_places(image.get_fdata(), Grid(image.shape, image.affine), result.image, result.grid)
    np.testing.assert_array_equal(voxels, np.rint(result.image))


@pytest.mark.parametrize("kind", [T2, CT], ids=["MR", "CT"])
@pytest.mark.parametrize("source", ["nifti", "MR", "CT"])
def test_dciodvfy_finds_no_error_in_any_slice(
    tmp_path: Path, from_nifti: Make, from_dicom: Make, source: str, kind: OutputKind
) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    result = from_nifti(kind) if source == "nifti" else from_dicom(kind, modality=source)
    written(result, tmp_path / "out")
    errors = []
    for file in sorted((tmp_path / "out").iterdir()):
        said = subprocess.run(["dciodvfy", "-new", file], capture_output=True, text=True, check=False).stderr
        errors += [line for line in said.splitlines() if line.startswith("Error") and NEWER_THAN_DCIODVFY not in line]
    assert errors == []


def test_patient_study_and_frame_are_the_sources_and_the_rest_is_new(tmp_path: Path, from_dicom: Make) -> None:
    result = from_dicom(T2, tags={"PatientWeight": "71", "StudyDescription": "Head"})
    source = pydicom.dcmread(result.case.files[0])
    series = written(result, tmp_path / "out")
    for keyword in (
        *("PatientName", "PatientID", "PatientSex", "PatientWeight", "StudyInstanceUID", "StudyDescription"),
        *("StudyDate", "FrameOfReferenceUID", "SpecificCharacterSet", "BodyPartExamined", "PatientPosition"),
    ):
        assert {str(ds[keyword].value) for ds in series} == {str(source[keyword].value)}, keyword
    assert len({ds.SeriesInstanceUID for ds in series} | {source.SeriesInstanceUID}) == 2
    assert len({ds.SOPInstanceUID for ds in series}) == len(series) == result.grid.shape[2]
    assert all(ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID for ds in series)


def test_every_slice_says_that_it_is_synthetic_and_what_made_it(tmp_path: Path, from_dicom: Make) -> None:
    for ds in written(from_dicom(T2), tmp_path / "out"):
        assert ds.SyntheticData == "YES"
        assert ds.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert "ynthetic" in ds.SeriesDescription
        assert "Not for diagnosis" in ds.DerivationDescription
        assert ds.BurnedInAnnotation == "NO"
        purposes = [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in ds.ContributingEquipmentSequence]
        assert purposes == ["109101", "109102"]
        assert any("medgen" in version for version in ds.ContributingEquipmentSequence[1].SoftwareVersions)


def test_nothing_of_the_scanner_is_carried_into_the_result(tmp_path: Path, from_dicom: Make) -> None:
    ct = written(from_dicom(CT, modality="MR"), tmp_path / "ct")[0]
    assert not {"EchoTime", "RepetitionTime", "FlipAngle", "ScanningSequence", "MagneticFieldStrength"} & set(ct.dir())
    assert (ct.RescaleSlope, ct.RescaleIntercept, ct.RescaleType) == (1, -1024, "HU")
    mr = written(from_dicom(T2, modality="CT"), tmp_path / "mr")[0]
    assert not {"RescaleSlope", "RescaleIntercept", "KVP"} & set(mr.dir())
    assert mr.EchoTime is None


def test_a_ct_that_was_processed_is_still_that_scan(tmp_path: Path, from_dicom: Make) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        dataset.ConvolutionKernel, dataset.KVP, dataset.ContrastBolusAgent = "B30f", "100", "something"
        dataset.WindowCenter, dataset.WindowWidth = "-600", "1500"

    source = from_dicom(DENOISED, modality="CT", edit=edit)
    image = np.clip(source.image, -1000, 3000)
    image[:3] = -2000
    ct = written(replace(source, image=image), tmp_path / "ct")[0]
    assert (ct.ConvolutionKernel, ct.KVP, ct.ContrastBolusAgent) == ("B30f", 100, "something")
    assert (ct.WindowCenter, ct.WindowWidth) == (-600, 1500)
    assert "SyntheticData" not in ct
    assert ct.SeriesDescription == "Denoised CT"
    assert ct.ImageComments == "Image denoised by a neural network. Not for diagnosis."
    doubted = written(replace(source, flags=("input-contrast", "regridded")), tmp_path / "doubted")[0]
    assert doubted.ImageComments == f"{ct.ImageComments} Flags: input-contrast, regridded."
    assert ct.PixelPaddingValue * ct.RescaleSlope + ct.RescaleIntercept == -2000
    synthetic = written(from_dicom(CT, modality="CT", edit=edit), tmp_path / "synthetic")[0]
    assert "ConvolutionKernel" not in synthetic
    assert synthetic.KVP is None
    assert "PixelPaddingValue" not in synthetic


def test_each_slice_names_its_own_source_and_keeps_its_number(tmp_path: Path, from_dicom: Make) -> None:
    result = from_dicom(T2)
    by_uid = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, result.case.files)}
    series = written(result, tmp_path / "out")
    for ds in series:
        (reference,) = ds.SourceImageSequence
        source = by_uid[reference.ReferencedSOPInstanceUID]
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        np.testing.assert_allclose(ds.ImagePositionPatient, source.ImagePositionPatient, atol=1e-4)
        np.testing.assert_allclose(ds.ImageOrientationPatient, source.ImageOrientationPatient, atol=1e-6)
        np.testing.assert_allclose(ds.PixelSpacing, source.PixelSpacing, atol=1e-6)
    ranks = np.argsort(
        np.argsort([by_uid[ds.SourceImageSequence[0].ReferencedSOPInstanceUID].InstanceNumber for ds in series])
    )
    assert [ds.InstanceNumber for ds in series] == (ranks + 1).tolist()


def test_doing_it_again_gives_the_same_files_and_other_weights_other_uids(tmp_path: Path, from_dicom: Make) -> None:
    result = from_dicom(T2)
    first = written(result, tmp_path / "out")
    bytes_before = [file.read_bytes() for file in sorted((tmp_path / "out").iterdir())]
    written(result, tmp_path / "out")
    assert [file.read_bytes() for file in sorted((tmp_path / "out").iterdir())] == bytes_before
    retrained = Provenance("brain_t1_to_t2", "0.1.0", "ef" * 32, MADE_BY.input_sha256)
    other = written(result_of(result.case, result.grid, made_by=retrained), tmp_path / "other")
    assert not {ds.SOPInstanceUID for ds in first} & {ds.SOPInstanceUID for ds in other}


def test_a_nifti_becomes_a_study_of_nobody(tmp_path: Path, from_nifti: Make) -> None:
    result = from_nifti(T2)
    first = written(result, tmp_path / "a")[0]
    assert str(first.PatientName) == ""
    assert first.PatientID.startswith("ANON-")
    assert "SourceImageSequence" not in first
    ct = written(from_nifti(CT), tmp_path / "b")[0]
    assert ct.StudyInstanceUID == first.StudyInstanceUID
    assert ct.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert ct.SeriesInstanceUID != first.SeriesInstanceUID


@pytest.mark.parametrize("turn", [False, True], ids=["axial", "sagittal"])
def test_nifti_slices_run_along_the_thick_axis_as_radiologists_look_at_them(tmp_path: Path, turn: bool) -> None:
    axial = head_grid((12, 14, 7), (1.1, 0.9, 4.0))
    grid = sagittal(head_grid((7, 12, 14), (4.0, 1.1, 0.9))) if turn else axial
    case = nifti_case(tmp_path / "in.nii", grid)
    series = written(result_of(case, grid), tmp_path / "out")
    assert len(series) == 7
    expected = [0, 1, 0, 0, 0, -1] if turn else [1, 0, 0, 0, 1, 0]
    np.testing.assert_allclose(series[0].ImageOrientationPatient, expected, atol=1e-9)


def test_values_that_span_little_are_scaled_and_the_file_says_so(tmp_path: Path, from_dicom: Make) -> None:
    result = from_dicom(T2)
    unit = result_of(result.case, result.grid, image=result.image / result.image.max())
    series = written(unit, tmp_path / "out")
    stored = np.stack([ds.pixel_array.T for ds in series[:: (1 if series[0].InstanceNumber == 1 else -1)]], axis=2)
    assert stored.max() == 4095
    assert "times the network's output" in series[0].DerivationDescription


@pytest.mark.parametrize(
    ("low", "high", "bits", "intercept"), [(-1000, 1500, 12, -1024), (-1000, 9000, 16, -1024), (-3000, 500, 12, -3000)]
)
def test_ct_numbers_survive_whatever_their_range(
    tmp_path: Path, from_dicom: Make, low: float, high: float, bits: int, intercept: int
) -> None:
    result = from_dicom(CT)
    image = np.linspace(low, high, result.image.size).reshape(result.image.shape)
    series = written(result_of(result.case, result.grid, CT, image=image), tmp_path / "out")
    assert (series[0].BitsStored, series[0].RescaleIntercept) == (bits, intercept)
    values = np.concatenate([ds.pixel_array.ravel() + float(ds.RescaleIntercept) for ds in series])
    assert (values.min(), values.max()) == (low, high)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_labels_are_stored_as_they_are_and_are_no_hounsfield_units(
    tmp_path: Path, from_dicom: Make, modality: str
) -> None:
    result = from_dicom(replace(LABELS, modality=modality))
    labels = np.arange(result.image.size).reshape(result.image.shape) % 4
    series = written(result_of(result.case, result.grid, result.kind, image=labels), tmp_path / "out")
    assert sorted(np.unique([ds.pixel_array for ds in series])) == [0, 1, 2, 3]
    assert series[0].get("RescaleIntercept", 0) == 0
    assert series[0].get("RescaleType", "US") == "US"
    assert (series[0].WindowCenter, series[0].WindowWidth) == (1.5, 3)
    (case,) = find_cases(tmp_path / "out", salt=b"")
    np.testing.assert_array_equal(read_image(case)[0].numpy(), labels)


def test_negative_mr_is_stored_signed(tmp_path: Path, from_dicom: Make) -> None:
    result = from_dicom(T2)
    image = result.image - 700
    written(result_of(result.case, result.grid, image=image), tmp_path / "out")
    (case,) = find_cases(tmp_path / "out", salt=b"")
    np.testing.assert_array_equal(read_image(case)[0].numpy(), np.rint(image))


def test_a_name_in_a_wrongly_stated_character_set_is_copied_byte_by_byte(tmp_path: Path, from_dicom: Make) -> None:
    def rename(dataset: Dataset, index: int) -> None:
        dataset.PatientName = "MARKER"

    result = from_dicom(T2, edit=rename)
    for file in result.case.files:  # Latin-1 under a header that says UTF-8
        file.write_bytes(file.read_bytes().replace(b"MARKER", b"M\xfcl^J "))
    write_dicom_series(result, tmp_path / "out")
    assert all(b"M\xfcl^J " in file.read_bytes() for file in (tmp_path / "out").iterdir())


def test_regridded_slices_name_the_source_slices_on_both_sides(tmp_path: Path, from_dicom: Make) -> None:
    result = from_dicom(T2)
    affine = result.grid.affine.copy()
    affine[:3, 2] *= 0.75
    shape = (*result.grid.shape[:2], 9)
    regridded = result_of(result.case, Grid(shape, affine), flags=["regridded"])
    series = sorted(written(regridded, tmp_path / "out"), key=lambda ds: ds.SliceLocation)
    counts = [len(ds.SourceImageSequence) for ds in series]
    assert counts == [1, 2, 2, 2, 1, 2, 2, 2, 1]
    assert {ds.DerivationCodeSequence[0].CodeMeaning for ds in series} == {"Spatial resampling"}
    step = np.subtract(series[1].ImagePositionPatient, series[0].ImagePositionPatient)
    assert np.linalg.norm(step) == pytest.approx(result.grid.spacing_mm[2] * 0.75, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "message"), [(OutputKind("pet", "PT", "PET"), "MR or CT.*got PT"), (OutputKind("x", "", ""), "got none")]
)
def test_another_modality_is_refused(tmp_path: Path, from_nifti: Make, kind: OutputKind, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        write_dicom_series(from_nifti(kind), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sheared_grid_is_refused(tmp_path: Path, from_nifti: Make, oblique: Grid) -> None:
    affine = oblique.affine.copy()
    affine[:3, 1] += 0.2 * affine[:3, 0]
    with pytest.raises(OutputError, match="shear"):
        write_dicom_series(result_of(from_nifti(T2).case, Grid(oblique.shape, affine)), tmp_path / "out")


def test_a_source_that_is_gone_is_said_without_its_path(tmp_path: Path, from_dicom: Make) -> None:
    result = from_dicom(T2)
    shutil.rmtree(tmp_path / "series")
    with pytest.raises(OutputError, match=r"^dicom-\w+: the source series can no longer be read"):
        write_dicom_series(result, tmp_path / "out")


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["siemens-t1-supine", "siemens-t1-jpeg2000", "siemens-xa30-enhanced"])
def test_real_series_get_a_derived_one_without_new_errors(tmp_path: Path, real_data: Path, name: str) -> None:
    (case,) = find_cases(real_data / "dicom" / name, salt=b"")
    image = read_image(case)
    grid = Grid(tuple(image.shape[1:]), image.affine.numpy())
    series = written(result_of(case, grid, image=image[0].numpy()), tmp_path / "out")
    (again,) = find_cases(tmp_path / "out", salt=b"")
    assert again.grid.differs_from(grid) == ""
    frames = {
        (item.ReferencedSOPInstanceUID, item.get("ReferencedFrameNumber"))
        for ds in series
        for item in ds.SourceImageSequence
    }
    assert len(frames) == len(series) == grid.shape[2]
    if shutil.which("dciodvfy"):
        said = subprocess.run(
            ["dciodvfy", "-new", tmp_path / "out" / "0003.dcm"], capture_output=True, text=True, check=False
        ).stderr
        errors = [line for line in said.splitlines() if line.startswith("Error") and NEWER_THAN_DCIODVFY not in line]
        assert errors == []


def test_codes_are_those_of_the_standard() -> None:
    ours = {
        "SpatialResampling": dicom.SPATIAL_RESAMPLING,
        "PixelByPixelSubtraction": dicom.PIXEL_SUBTRACTION,
        "SourceImageForImageProcessingOperation": dicom.SOURCE_IMAGE,
        "ProcessingEquipment": dicom.PROCESSING_EQUIPMENT,
        "AcquisitionEquipment": dicom.ACQUISITION_EQUIPMENT,
    }
    for name, code in ours.items():
        known = getattr(codes.DCM, name)
        assert code == (known.value, known.scheme_designator, known.meaning)
