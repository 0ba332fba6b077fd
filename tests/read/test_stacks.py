"""One series can hold several volumes; what tells them apart is found, and what nothing tells apart is refused."""

from pathlib import Path

import pytest
from pydicom import Dataset

from medgen.read.planes import read_planes
from medgen.read.stacks import Stack, build_stacks
from tests.read.series import SHAPE, moved, oblique_affine, voxels, write


def stacks_in(folder: Path) -> list[Stack]:
    return build_stacks(p for f in sorted(folder.rglob("*.dcm")) for p in read_planes(f))


def write_part(folder: Path, seed: int, first_instance: int, edit_more: object = None, **tags: object) -> None:
    """Writes a part of the one series 1.2.3 with its own instance UIDs and pixels."""

    def edit(dataset: Dataset, index: int) -> None:
        dataset.SOPInstanceUID = f"1.2.3.{seed}.{index + 1}"
        dataset.InstanceNumber = first_instance + index
        if callable(edit_more):
            edit_more(dataset, index)

    write(folder, voxels(seed=seed), edit=edit, SeriesInstanceUID="1.2.3", **tags)


@pytest.mark.parametrize(
    ("keyword", "values", "keys"),
    [
        ("EchoTime", ["4.9", "9.8"], ["echo=4.9", "echo=9.8"]),
        (
            "ImageType",
            [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]],
            ["image-type=ORIGINAL-PRIMARY-M", "image-type=ORIGINAL-PRIMARY-P"],
        ),
        ("TemporalPositionIdentifier", ["1", "2"], ["time=1", "time=2"]),
        ("AcquisitionNumber", ["1", "2"], ["acquisition=1", "acquisition=2"]),
    ],
)
def test_a_label_tells_two_volumes_apart(tmp_path: Path, keyword: str, values: list[object], keys: list[str]) -> None:
    for number, value in enumerate(values):
        write_part(tmp_path / str(number), number, 1, **{keyword: value})
    stacks = stacks_in(tmp_path)
    assert [s.key for s in stacks] == keys
    assert [len(s.planes) for s in stacks] == [SHAPE[2]] * 2
    assert not any(s.conflict or s.excluded for s in stacks)


def test_a_label_that_differs_within_one_volume_splits_nothing(tmp_path: Path) -> None:
    write_part(tmp_path, 0, 1, lambda d, i: setattr(d, "AcquisitionNumber", 1 + i // 2))
    assert [(s.key, len(s.planes)) for s in stacks_in(tmp_path)] == [("", SHAPE[2])]


def test_repetitions_in_the_order_of_their_instances(tmp_path: Path) -> None:
    write_part(tmp_path / "b", 2, 1 + SHAPE[2])
    write_part(tmp_path / "a", 1, 1)
    stacks = stacks_in(tmp_path)
    assert [s.key for s in stacks] == ["repetition=1", "repetition=2"]
    assert [s.planes[0].instance for s in stacks] == [1, 1 + SHAPE[2]]


def test_acquisitions_that_reach_into_each_other(tmp_path: Path) -> None:
    """Offset by a third of a slice: one stack would be uneven, each alone is regular."""
    write_part(tmp_path / "a", 1, 1, AcquisitionNumber=1)
    write_part(tmp_path / "b", 2, 1, lambda d, i: moved(d, oblique_affine(), along=0.77), AcquisitionNumber=2)
    assert [s.key for s in stacks_in(tmp_path)] == ["acquisition=1", "acquisition=2"]


def test_two_directions_are_two_volumes(tmp_path: Path) -> None:
    write_part(tmp_path / "a", 1, 1)
    write_part(tmp_path / "b", 2, 1, ImageOrientationPatient=[0, 1, 0, 0, 0, -1], ImagePositionPatient=None)
    assert len(stacks_in(tmp_path)) == 1, "planes without position cannot be told apart"

    def turned(dataset: Dataset, index: int) -> None:
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [index * 2.3, 0, 0]

    write_part(tmp_path / "b", 2, 1, turned)
    assert [(s.key, len(s.planes)) for s in stacks_in(tmp_path)] == [("direction=1", 6), ("direction=2", 6)]


def test_a_few_slices_in_far_directions_are_a_scout(tmp_path: Path) -> None:
    def turned(dataset: Dataset, index: int) -> None:
        if index % 2:
            dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [index * 8.0, 0, 0]

    write_part(tmp_path, 1, 1, turned)
    assert [s.excluded for s in stacks_in(tmp_path)] == ["localizer (2 directions of few slices)"]


def test_what_nothing_tells_apart_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path / "a", 1, 1)
    write_part(tmp_path / "b", 2, 1)
    (stack,) = stacks_in(tmp_path)
    assert stack.conflict == "6 of 6 slice positions hold different images that no header field tells apart"


def test_an_identity_in_the_description_is_left_out(tmp_path: Path) -> None:
    write_part(tmp_path, 1, 1, SeriesDescription="T1 Doe", PatientName="Doe^Jane", EchoTime="5")
    (stack,) = stacks_in(tmp_path)
    assert stack.planes[0].description == "GR, TR 18 ms, TE 5 ms"
