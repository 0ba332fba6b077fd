"""Simulated series: other software reads them at the right place, and a validator finds nothing to complain about."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that SimpleITK's own documentation uses
from pydicom import Dataset

from medgen.geometry import Grid, Planes, lps_to_ras
from medgen.simulate.dicom import write_series
from medgen.simulate.sample import head_grid, sagittal, write_sample

GRID = sagittal(head_grid((9, 16, 12), (3.1, 1.3, 0.9), tilt_degrees=14.0))


def image_for(grid: Grid, low: float = 0.0, high: float = 900.0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).uniform(low, high, grid.shape).astype(np.float32)


def test_planes_and_grid_are_each_others_inverse() -> None:
    x, y, _ = GRID.shape
    assert Planes.of(GRID).grid(rows=y, columns=x).differs_from(GRID) == ""


@pytest.mark.parametrize(("modality", "low"), [("MR", 0.0), ("CT", -1000.0)])
def test_simpleitk_reads_values_and_place_back(tmp_path: Path, modality: str, low: float) -> None:
    image = image_for(GRID, low)
    files = write_series(tmp_path, image, GRID.affine, modality)
    read = sitk.ReadImage([str(file) for file in files])
    lps = np.eye(4)
    lps[:3, :3] = np.array(read.GetDirection()).reshape(3, 3) @ np.diag(read.GetSpacing())
    lps[:3, 3] = read.GetOrigin()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read).transpose(2, 1, 0), np.rint(image))
    assert Grid(GRID.shape, lps_to_ras(lps)).differs_from(GRID) == ""


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_dciodvfy_has_nothing_to_say(tmp_path: Path, modality: str) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    files = write_series(tmp_path, image_for(GRID), GRID.affine, modality)
    said = subprocess.run(["dciodvfy", "-new", str(files[4])], capture_output=True, text=True, check=False).stderr
    assert [line for line in said.splitlines() if line.startswith(("Error", "Warning"))] == []


def test_the_same_call_gives_the_same_bytes_and_another_patient_other_uids(tmp_path: Path) -> None:
    def write(name: str, seed: int) -> list[Path]:
        return write_series(tmp_path / name, image_for(GRID), GRID.affine, seed=seed)

    first, again, other = write("a", 1), write("b", 1), write("c", 2)
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]
    uids = {pydicom.dcmread(file).SOPInstanceUID for file in (*first, *other)}
    assert len(uids) == 2 * GRID.shape[2]
    assert pydicom.dcmread(first[0]).StudyInstanceUID != pydicom.dcmread(other[0]).StudyInstanceUID


def test_tags_and_edits_reach_every_slice(tmp_path: Path) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        dataset.RescaleSlope = 1 + index

    files = write_series(tmp_path, image_for(GRID), GRID.affine, tags={"SeriesDescription": "T1 fat"}, edit=edit)
    headers = [pydicom.dcmread(file) for file in files]
    assert {header.SeriesDescription for header in headers} == {"T1 fat"}
    assert [header.RescaleSlope for header in headers] == list(range(1, GRID.shape[2] + 1))


def test_the_sample_has_three_unlike_scans(tmp_path: Path) -> None:
    write_sample(tmp_path, seed=2)
    assert len(list(tmp_path.rglob("*_T1w.nii.gz"))) == 2
    series = sorted((tmp_path / "sub-03" / "dicom").iterdir())
    assert len(series) > 50
    assert pydicom.dcmread(series[0]).Modality == "MR"
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 5e6


def test_what_one_series_edits_does_not_leak_into_the_next(tmp_path: Path) -> None:
    def mark(dataset: Dataset, index: int) -> None:
        dataset.ImageType[0] = "DERIVED"
        dataset["SOPClassUID"].value = pydicom.uid.SecondaryCaptureImageStorage

    image = image_for(GRID)
    write_series(tmp_path / "first", image, GRID.affine, "MR", edit=mark)
    later = pydicom.dcmread(write_series(tmp_path / "next", image, GRID.affine, "MR")[0])
    assert later.ImageType[0] == "ORIGINAL"
    assert later.SOPClassUID == pydicom.uid.MRImageStorage
