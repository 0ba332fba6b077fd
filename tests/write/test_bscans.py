"""Heat maps of B-scans: a picture in own pixels, NIfTI beside a picture, a Parametric Map beside DICOM of an eye."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset

from medgen.case import Case, Findings, OutputKind, RegionScore, Result
from medgen.geometry import Grid
from medgen.read.bscan_cases import picture_case
from medgen.read.discover import find_cases
from medgen.read.manifest import Listed
from medgen.read.reader import read_image
from medgen.simulate.ophthalmic import as_photograph, write_opt
from medgen.write.bscans import write_bscans
from medgen.write.parametric import write_parametric_map
from medgen.write.result import write_result
from tests.read.eyes import bscan, save, volume
from write.conftest import MADE_BY

HEAT = OutputKind("heat", "OPT", "Anomaly heat map", "score", "scored")
SPOT = (60, 50)  # column, row


def scored(case: Case, *, findings: bool = True) -> Result:
    """A result whose map is highest at `SPOT`, in the last B-scan but one where there are several."""
    image = read_image(case)
    source = image[0].numpy()
    grid = Grid(source.shape, image.affine.numpy())
    heat = np.random.default_rng(0).normal(0, 0.02, source.shape).astype(np.float32)
    place = (*SPOT, max(source.shape[2] - 2, 0))
    heat[SPOT[0] - 2 : SPOT[0] + 3, SPOT[1] - 2 : SPOT[1] + 3, place[2]] = 2.0
    x, y, z = (grid.affine @ [*place, 1.0])[:3].tolist()
    regions = (RegionScore("inner band, right", 2.0, 0.1, (x, y, z), 5.0, 0.01),)
    found = Findings(1.25, regions, 0.04, "healthy eyes") if findings else None
    flags = (*case.flags, "input-unfamiliar")
    return Result(case, HEAT, heat, source, grid, MADE_BY, flags, findings=found)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Case]:
    """Makes the one case of a file that `write` puts into a folder."""

    def case(write: Callable[[Path], object]) -> Case:
        (tmp_path / "in").mkdir()
        write(tmp_path / "in")
        (found,) = find_cases(tmp_path / "in", salt=b"salt", modality="OPT")
        return found

    return case


def read(folder: Path) -> Dataset:
    (path,) = folder.rglob("*.dcm")
    return pydicom.dcmread(path)


def frames(made: Dataset) -> dict[tuple[float, ...], np.ndarray]:
    """The frames of a map `(rows, columns)` by their place."""
    values = np.frombuffer(made.FloatPixelData, np.float32).reshape(-1, made.Rows, made.Columns)
    groups = made.PerFrameFunctionalGroupsSequence
    places = [tuple(map(float, g.PlanePositionSequence[0].ImagePositionPatient)) for g in groups]
    return dict(zip(places, values, strict=True))


@pytest.mark.parametrize(("name", "values"), [("a.JPG", bscan()), ("v.tif", volume())])
def test_a_picture_gets_nifti_on_its_grid(tmp_path: Path, make: Callable, name: str, values: np.ndarray) -> None:
    result = scored(make(lambda folder: save(folder / name, values)))
    done = write_result(result, tmp_path / "out")
    assert done.output.as_posix() == f"{Path(name).stem}_desc-scored_heat.nii.gz"
    assert sorted(path.name.rpartition("_heat")[2] for path in done.files) == [
        ".json",
        ".nii.gz",
        ".png",
        "_regions.csv",
    ]
    image = nib.load(tmp_path / "out" / done.output)
    np.testing.assert_allclose(image.affine, np.diag([-1.0, -1, 1, 1]))
    np.testing.assert_allclose(np.asarray(image.dataobj).reshape(result.image.shape), result.image, atol=1e-3)


def test_dicom_of_a_picture_is_a_study_of_nobodys_whatever_its_steps(tmp_path: Path) -> None:
    files = tuple(save(tmp_path / f"{k}.png", bscan(k)) for k in range(3))
    case = picture_case(
        Listed(files, (30.0, 4.0, 10.0)), PurePosixPath("0.png")
    )  # dense: lateral steps are the longest
    result = scored(case)
    done = write_result(result, tmp_path / "out", "dicom")
    made = read(tmp_path / "out" / done.output)
    assert (made.NumberOfFrames, made.Rows, made.Columns, made.PatientName) == (3, 80, 96, "")
    found = frames(made)
    for index in range(3):
        np.testing.assert_array_equal(found[0.0, 0.0, round(0.01 * index, 6)], result.image[:, :, index].T)


@pytest.mark.parametrize("laterality", ["R", "L"])
def test_a_map_of_a_placed_eye_lies_where_its_source_does(tmp_path: Path, make: Callable, laterality: str) -> None:
    affine = np.diag([-0.0115, -0.00387, -0.24, 1.0])  # B-scans downwards, against the normal
    affine[:3, 3] = (30, 80, -5)
    result = scored(make(lambda folder: write_opt(folder / "a.dcm", volume(), affine=affine, laterality=laterality)))
    write_parametric_map(result, tmp_path / "out")
    made, source = read(tmp_path / "out"), pydicom.dcmread(result.case.files[0])
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert made[keyword].value == source[keyword].value
    (anatomy,) = made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence
    assert (anatomy.FrameLaterality, anatomy.AnatomicRegionSequence[0].CodeMeaning) == (laterality, "Eye")
    found, places = frames(made), source.PerFrameFunctionalGroupsSequence
    for index, group in enumerate(places):
        place = tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        near = min(found, key=lambda other: np.linalg.norm(np.subtract(other, place)))
        np.testing.assert_allclose(near, place, atol=1e-5)
        np.testing.assert_array_equal(found[near], result.image[:, :, index].T)
    for group in made.PerFrameFunctionalGroupsSequence:
        (named,) = group.DerivationImageSequence[0].SourceImageSequence
        place = places[named.ReferencedFrameNumber - 1].PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient, place, atol=1e-5)


def unplaced(path: Path) -> Path:
    return write_opt(path / "a.dcm", volume(), spacing_um=(), placed=False)


def photograph(path: Path) -> Path:
    return write_opt(path / "a.dcm", volume(), edit=as_photograph)


@pytest.mark.parametrize(
    ("write", "said"), [(unplaced, "size of pixels is not known"), (photograph, "distance of B-s")]
)
def test_what_the_source_does_not_say_has_a_frame_of_reference_of_its_own(
    tmp_path: Path, make: Callable, write: Callable[[Path], Path], said: str
) -> None:
    result = scored(make(write))
    write_parametric_map(result, tmp_path / "out")
    made, source = read(tmp_path / "out"), pydicom.dcmread(result.case.files[0])
    assert made.StudyInstanceUID == source.StudyInstanceUID
    assert made.FrameOfReferenceUID != source.get("FrameOfReferenceUID")
    assert said in made.ImageComments
    found = frames(made)
    for group in made.PerFrameFunctionalGroupsSequence:
        (named,) = group.DerivationImageSequence[0].SourceImageSequence
        place = tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        np.testing.assert_array_equal(found[place], result.image[:, :, named.ReferencedFrameNumber - 1].T)
    assert made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence[0].FrameLaterality == "R"


WRITERS = (unplaced, photograph, lambda p: write_opt(p / "a.dcm", volume()), lambda p: save(p / "a.png", bscan()))


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("write", WRITERS)
def test_dciodvfy_finds_no_error(tmp_path: Path, make: Callable, write: Callable[[Path], Path]) -> None:
    write_parametric_map(scored(make(write)), tmp_path / "out")
    done = subprocess.run(["dciodvfy", tmp_path / "out" / "0001.dcm"], capture_output=True, text=True, check=False)
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")] == []


def test_doing_it_again_gives_the_same_file(tmp_path: Path, make: Callable) -> None:
    result = scored(make(unplaced))
    for name in ("one", "two"):
        write_parametric_map(result, tmp_path / name)
    assert (tmp_path / "one" / "0001.dcm").read_bytes() == (tmp_path / "two" / "0001.dcm").read_bytes()


def warm(path: Path) -> np.ndarray:
    """Where a picture is as hot as the highest scores are drawn."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return (pixels[..., 0] > 150) & (pixels[..., 0] - pixels[..., 2] > 90)


def test_the_picture_shows_the_map_under_the_b_scan_where_it_is(tmp_path: Path, make: Callable) -> None:
    result = scored(make(lambda folder: save(folder / "a.png", bscan())), findings=False)
    heat = np.zeros_like(result.image)
    heat[56:65, 46:55] = np.linspace(1, 2, 9)[:, None, None]
    write_bscans(replace(result, image=heat), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as page:
        assert page.width == 640
        tall = round(640 * 80 / 96)
        assert page.height > 2 * tall
    places = np.argwhere(warm(tmp_path / "a.png")[: 20 + 2 * tall + 6])
    places = places[places[:, 0] > 20]  # below the title
    assert len(places)
    assert places[:, 0].min() > 20 + tall  # in colour below only
    row, column = np.median(places, axis=0) - [20 + tall + 6, 0]
    assert abs(column / 640 * 96 - 60.5) < 6
    assert abs(row / 640 * 96 - 50.5) < 6


def test_of_a_volume_it_shows_three_b_scans_and_of_regions_or_none(tmp_path: Path, make: Callable) -> None:
    result = scored(make(lambda folder: save(folder / "v.tif", volume(7))))
    write_bscans(result, tmp_path / "with.png")
    write_bscans(replace(result, findings=None), tmp_path / "without.png")
    with Image.open(tmp_path / "with.png") as page, Image.open(tmp_path / "without.png") as other:
        assert page.width == other.width == 3 * 320 + 2 * 6
        assert page.height == other.height


def test_results_of_eyes_take_this_way_and_others_do_not(tmp_path: Path, make: Callable) -> None:
    result = scored(make(lambda folder: save(folder / "a.png", bscan())))
    write_result(result, tmp_path / "eye")
    write_result(replace(result, kind=replace(HEAT, modality="MR")), tmp_path / "brain")
    sizes = {}
    for name in ("eye", "brain"):
        (path,) = (tmp_path / name).glob("*.png")
        with Image.open(path) as picture:
            sizes[name] = picture.size
    assert sizes["eye"] != sizes["brain"]
