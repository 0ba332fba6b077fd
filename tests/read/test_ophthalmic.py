"""DICOM of an eye: frames become B-scans, in the patient's space where the file says one, lateral and depth as ever."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from medgen.errors import GeometryError, UnreadableError
from medgen.geometry import Grid
from medgen.read.ophthalmic import read_bscan_dicom
from medgen.read.planes import read_planes
from medgen.simulate.ophthalmic import as_photograph, write_opt
from tests.read.eyes import bscan, volume


def oblique() -> np.ndarray:
    turn, tip = 0.2, -0.1
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(tip), -np.sin(tip)], [0, np.sin(tip), np.cos(tip)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-0.0115, -0.00387, 0.24])
    affine[:3, 3] = (30.0, 80.0, -5.0)
    return affine


@pytest.mark.parametrize("highest", [255, 4095])
@pytest.mark.parametrize("downwards", [False, True])
def test_a_placed_volume_keeps_its_space_and_its_order(tmp_path: Path, highest: int, downwards: bool) -> None:
    affine = oblique()
    if downwards:
        affine[:3, 2] *= -1
    read = read_bscan_dicom(write_opt(tmp_path / "a.dcm", volume(highest=highest), affine=affine))
    np.testing.assert_array_equal(read.image, volume(highest=highest))
    assert not read.grid.differs_from(Grid(volume().shape, affine))
    assert (read.flags, read.modality) == ((), "OPT")


def test_frames_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    def shuffle(dataset: Dataset) -> None:
        frames = list(dataset.PerFrameFunctionalGroupsSequence)
        pixels = np.frombuffer(dataset.PixelData, np.uint8)[: volume().size].reshape(5, -1)
        order = [2, 0, 4, 1, 3]
        dataset.PerFrameFunctionalGroupsSequence = [frames[i] for i in order]
        dataset.PixelData = pixels[order].tobytes()

    read = read_bscan_dicom(write_opt(tmp_path / "a.dcm", volume(), affine=oblique(), edit=shuffle))
    np.testing.assert_array_equal(read.image, volume())
    assert not read.grid.differs_from(Grid(volume().shape, oblique()))


@pytest.mark.parametrize(
    ("spacing_um", "diagonal", "flags"),
    [
        ((11.5, 3.87, 240), (-0.0115, -0.00387, 0.24), ()),
        ((11.5, 3.87), (-0.0115, -0.00387, 1), ("spacing-between-unknown",)),
        ((), (-1, -1, 1), ("spacing-unknown",)),
    ],
)
def test_one_without_places_has_a_space_of_its_own(
    tmp_path: Path, spacing_um: tuple[float, ...], diagonal: tuple[float, ...], flags: tuple[str, ...]
) -> None:
    read = read_bscan_dicom(write_opt(tmp_path / "a.dcm", volume(), spacing_um=spacing_um, placed=False))
    np.testing.assert_array_equal(read.image, volume())
    np.testing.assert_allclose(read.grid.affine, np.diag([*diagonal, 1]))
    assert read.flags == flags


def test_a_photograph_of_several_frames_has_its_spacing_at_the_top(tmp_path: Path) -> None:
    read = read_bscan_dicom(write_opt(tmp_path / "a.dcm", volume(), edit=as_photograph))
    np.testing.assert_array_equal(read.image, volume())
    np.testing.assert_allclose(read.grid.spacing_mm, (0.0115, 0.00387, 1))
    assert (read.flags, read.modality) == (("spacing-between-unknown",), "OP")


def test_a_single_b_scan(tmp_path: Path) -> None:
    read = read_bscan_dicom(write_opt(tmp_path / "a.dcm", bscan()[..., None]))
    np.testing.assert_array_equal(read.image[..., 0], bscan())
    assert read.flags == ()


def star(dataset: Dataset) -> None:
    """A radial pattern: B-scans turned about the middle."""
    del dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        own = Dataset()
        own.ImageOrientationPatient = [f"{np.cos(index / 5):.8f}", "0", f"{np.sin(index / 5):.8f}", "0", "1", "0"]
        frame.PlaneOrientationSequence = [own]


def jump(dataset: Dataset) -> None:
    place = dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    place.ImagePositionPatient = [*place.ImagePositionPatient[:2], float(place.ImagePositionPatient[2]) + 0.2]


def repeat(dataset: Dataset) -> None:
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence = [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]


@pytest.mark.parametrize("edit", [star, jump, repeat])
def test_what_forms_no_grid_is_read_flagged_and_not_placed(tmp_path: Path, edit: object) -> None:
    read = read_bscan_dicom(write_opt(tmp_path / "a.dcm", volume(), edit=edit))
    np.testing.assert_array_equal(read.image, volume())
    np.testing.assert_allclose(read.grid.affine, np.diag([-0.0115, -0.00387, 0.24, 1]))
    assert read.flags == ("bscans-uneven",)


def fundus(dataset: Dataset) -> None:
    dataset.AcquisitionDeviceTypeCodeSequence[0].CodeValue = "409898007"  # fundus camera


def colours(dataset: Dataset) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"


def fewer(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence = list(dataset.PerFrameFunctionalGroupsSequence)[:3]


def inverted(dataset: Dataset) -> None:
    dataset.PhotometricInterpretation = "MONOCHROME1"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (fundus, "got ophthalmic photograph, not by an OCT scanner"),
        (colours, "got colour image, no B-scan"),
        (fewer, "expected 5 frames as stated, got 3 described"),
        (inverted, "expected MONOCHROME2, got MONOCHROME1"),
    ],
)
def test_what_is_no_b_scan_is_refused(tmp_path: Path, edit: object, said: str) -> None:
    with pytest.raises(UnreadableError, match=said):
        read_bscan_dicom(write_opt(tmp_path / "a.dcm", volume(), edit=edit))


def test_a_small_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="64 x 64 pixels or more, got 96 x 40"):
        read_bscan_dicom(write_opt(tmp_path / "a.dcm", volume()[:, :40]))


def test_only_who_asks_for_eyes_gets_them(tmp_path: Path) -> None:
    path = write_opt(tmp_path / "a.dcm", volume())
    (plane,) = read_planes(path)
    assert plane.excluded == "modality OPT: not a CT, MR or PET volume image"
    assert len(read_planes(path, eyes=True)) == 5
