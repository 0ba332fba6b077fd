"""A map of scores as a DICOM Parametric Map, a table and a picture."""

import csv
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath

import highdicom as hd
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset

from medgen.case import Findings, OutputKind, RegionScore, Result
from medgen.geometry import Grid, lps_to_ras
from medgen.write.overlay import write_overlay
from medgen.write.parametric import write_parametric_map
from medgen.write.result import write_result
from write.conftest import Make

HEAT = OutputKind("heat", "MR", "Anomaly heat map", "score", "scored")
FINDINGS = Findings(
    1.25,
    (
        RegionScore("left front top", 2.5, 30.1, (1.0, 2.0, 3.0), 5.5, 0.005),
        RegionScore("right back base", 0.5, 20.0, (4.0, 5.0, 6.0), 1.5, 0.6),
    ),
    0.04,
    "FLAIR: 200 regions of healthy tissue of 5 patients",
)


def scored(make: Make, **options: object) -> Result:
    result = make(HEAT, **options)
    heat = np.random.default_rng(1).normal(0, 0.1, result.grid.shape).astype(np.float32)
    return replace(result, image=heat, findings=FINDINGS)


def written(result: Result, folder: Path) -> Dataset:
    write_parametric_map(result, folder)
    (path,) = folder.iterdir()
    return pydicom.dcmread(path)


@pytest.fixture(params=["from_dicom", "from_nifti"])
def result(request: pytest.FixtureRequest) -> Result:
    return scored(request.getfixturevalue(request.param))


def test_highdicom_reads_values_and_places_back(result: Result, tmp_path: Path) -> None:
    write_parametric_map(result, tmp_path / "out")
    volume = hd.imread(tmp_path / "out" / "0001.dcm").get_volume()
    places = Grid(volume.spatial_shape, lps_to_ras(volume.affine))
    index = np.linalg.inv(places.affine) @ result.grid.affine
    points = np.stack(np.meshgrid(*map(np.arange, result.grid.shape), indexing="ij")).reshape(3, -1)
    found = np.rint((index @ np.vstack([points, np.ones(points.shape[1])]))[:3]).astype(int)
    np.testing.assert_array_equal(volume.array[tuple(found)].reshape(result.image.shape), result.image)


def test_it_joins_its_source_and_names_the_slice_of_every_frame(from_dicom: Make, tmp_path: Path) -> None:
    result = scored(from_dicom)
    made, source = written(result, tmp_path / "out"), pydicom.dcmread(result.case.files[0])
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert made[keyword].value == source[keyword].value
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    heights = {}
    for file in result.case.files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        heights[header.SOPInstanceUID] = np.array(header.ImagePositionPatient, dtype=float)
    for frame in made.PerFrameFunctionalGroupsSequence:
        (named,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        np.testing.assert_allclose(heights[named.ReferencedSOPInstanceUID], place, atol=1e-3)
    (series,) = made.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == set(heights)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "DOE JANE"),
        ("PatientName", None),
        ("PatientID", None),
        ("PatientSex", "W"),
        ("StudyDate", None),
        ("PatientBirthDate", "1950-01-01"),
    ],
)
def test_an_identity_that_is_not_quite_valid_is_carried_over_and_nobody_is_named(
    from_dicom: Make, tmp_path: Path, keyword: str, value: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        if value is None and keyword in dataset:
            del dataset[keyword]
        elif value is not None:
            with pydicom.config.disable_value_validation():
                setattr(dataset, keyword, value)

    result = scored(from_dicom, edit=edit)
    made = written(result, tmp_path / "out")
    assert str(made[keyword].value or "") == (value or "")
    assert [
        str(one.message) for one in recwarn if value and value in str(one.message) and "highdicom" in one.filename
    ] == []


def test_of_a_file_it_is_a_study_of_nobodys_and_names_no_source(from_nifti: Make, tmp_path: Path) -> None:
    made = written(scored(from_nifti), tmp_path / "out")
    assert made.PatientName == ""
    assert "ReferencedSeriesSequence" not in made
    assert not any(frame.DerivationImageSequence for frame in made.PerFrameFunctionalGroupsSequence)


def test_it_says_what_its_numbers_are(result: Result, tmp_path: Path) -> None:
    made = written(result, tmp_path / "out")
    assert made.Modality == "OT"  # as Parametric Maps have it
    assert "scored" in made.SeriesDescription.lower()
    assert made.ContentQualification == "RESEARCH"
    assert "Not for diagnosis" in made.ImageComments
    (mapping,) = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)


def test_doing_it_again_gives_the_same_file(result: Result, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_parametric_map(result, tmp_path / name)
    assert (tmp_path / "one" / "0001.dcm").read_bytes() == (tmp_path / "two" / "0001.dcm").read_bytes()


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(result: Result, tmp_path: Path) -> None:
    write_parametric_map(result, tmp_path / "out")
    done = subprocess.run(["dciodvfy", tmp_path / "out" / "0001.dcm"], capture_output=True, text=True, check=False)
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")] == []


def test_a_scored_case_has_its_map_its_table_and_its_picture(result: Result, tmp_path: Path) -> None:
    done = write_result(result, tmp_path, "both")
    suffixes = sorted(PurePosixPath(path).name.rpartition("_heat")[2] for path in done.files)
    assert suffixes == sorted(["_dicom/0001.dcm".rpartition("/")[2], ".nii.gz", ".json", ".png", "_regions.csv"])
    (table,) = tmp_path.rglob("*_regions.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert (rows[0]["region"], rows[0]["evidence"], rows[0]["p"]) == ("whole scan", "1.25", "0.04")
    assert (rows[1]["region"], rows[1]["p"], rows[1]["peak_a_mm"]) == ("left front top", "0.005", "2.0")
    assert (rows[1]["score"], rows[1]["evidence"]) == ("2.5", "5.5")
    assert [row["reference"] for row in rows] == [FINDINGS.reference, "", ""]


def test_the_picture_marks_the_top_regions_and_works_without(result: Result, tmp_path: Path) -> None:
    write_overlay(result, tmp_path / "with.png")
    write_overlay(replace(result, findings=None), tmp_path / "without.png")
    with Image.open(tmp_path / "with.png") as both, Image.open(tmp_path / "without.png") as one:
        assert both.height > 1.5 * one.height  # a row a region
        pixels = np.asarray(one.convert("RGB")).astype(int)
    coloured = (pixels.max(axis=2) - pixels.min(axis=2)) > 60
    assert 0 < coloured.mean() < 0.3
