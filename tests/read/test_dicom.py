"""A series read back is the volume that was written, whatever its order and coding; an irregular one is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from medgen.errors import GeometryError, IntensityError, UnreadableError
from medgen.geometry import Grid
from medgen.read.dicom import read_dicom
from medgen.simulate.dicom import write_series
from tests.read.series import SHAPE, SPACING, moved, oblique_affine, voxels, world_ramp, write, write_enhanced


def files_in(folder: Path) -> list[Path]:
    return [f for f in folder.rglob("*") if f.is_file()]


class TestSameVolume:
    def test_what_was_written(self, tmp_path: Path) -> None:
        volume = read_dicom(write(tmp_path))
        np.testing.assert_array_equal(volume.image, voxels())
        assert not volume.grid.differs_from(Grid(SHAPE, oblique_affine()))
        assert volume.grid.spacing_mm == pytest.approx(SPACING, abs=1e-6)
        assert (volume.modality, volume.flags) == ("MR", ())

    @settings(max_examples=10, deadline=None)
    @given(order=st.permutations(range(SHAPE[2])), degrees=st.floats(-80, 80))
    def test_order_comes_from_positions_alone(
        self, tmp_path_factory: pytest.TempPathFactory, order: list[int], degrees: float
    ) -> None:
        def edit(dataset: Dataset, index: int) -> None:
            dataset.InstanceNumber = order[index] + 1

        affine = oblique_affine(degrees=degrees)
        files = write_series(tmp_path_factory.mktemp("series"), voxels(), affine, "MR", edit=edit)
        volume = read_dicom([files[i] for i in order])
        np.testing.assert_array_equal(volume.image, voxels())
        assert not volume.grid.differs_from(Grid(SHAPE, affine))

    def test_slices_written_against_the_normal(self, tmp_path: Path) -> None:
        affine = oblique_affine()
        affine[:3, 2] *= -1
        volume = read_dicom(write_series(tmp_path, voxels(), affine, "MR"))
        np.testing.assert_array_equal(volume.image, voxels()[:, :, ::-1])
        corner = volume.grid.affine @ (0, 0, SHAPE[2] - 1, 1)
        np.testing.assert_allclose(corner, affine @ (0, 0, 0, 1), atol=1e-5)

    def test_more_slices_than_a_slab(self, tmp_path: Path) -> None:
        image = voxels((4, 5, 37))
        np.testing.assert_array_equal(read_dicom(write(tmp_path, image)).image, image)


class TestValues:
    def test_rescale_of_each_slice(self, tmp_path: Path) -> None:
        def edit(dataset: Dataset, index: int) -> None:
            dataset.RescaleSlope, dataset.RescaleIntercept = 1.0 + 0.25 * index, -10.0 * index

        slope = 1.0 + 0.25 * np.arange(SHAPE[2])
        expected = voxels() * slope - 10.0 * np.arange(SHAPE[2])
        np.testing.assert_allclose(read_dicom(write(tmp_path, edit=edit)).image, expected, rtol=1e-6)

    def test_ct_in_hounsfield(self, tmp_path: Path) -> None:
        hu = voxels() - 1000
        np.testing.assert_array_equal(read_dicom(write_series(tmp_path, hu, oblique_affine(), "CT")).image, hu)

    @pytest.mark.parametrize("overlay_bits", [0, 0xF000])
    def test_signed_12_bits_in_16(self, tmp_path: Path, overlay_bits: int) -> None:
        values = voxels() - 500

        def edit(dataset: Dataset, index: int) -> None:
            stored = (values[:, :, index].T & 0xFFF) | overlay_bits
            dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 1
            dataset.PixelData = stored.astype("<u2").tobytes()

        np.testing.assert_array_equal(read_dicom(write(tmp_path, edit=edit)).image, values)

    def test_8_bits(self, tmp_path: Path) -> None:
        values = voxels() % 200

        def edit(dataset: Dataset, index: int) -> None:
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
            data = values[:, :, index].T.astype("u1").tobytes()
            dataset.PixelData = data + b"\0" * (len(data) % 2)
            dataset["PixelData"].VR = "OB"

        np.testing.assert_array_equal(read_dicom(write(tmp_path, edit=edit)).image, values)

    def test_implicit_deflated_and_rle(self, tmp_path: Path) -> None:
        expected = voxels()
        files = write(tmp_path)
        syntaxes = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5")
        for file, syntax in zip(files, syntaxes, strict=False):
            dataset = dcmread(file)
            if syntax.endswith(".2.5"):
                dataset.compress(syntax, generate_instance_uid=False)
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(file, enforce_file_format=True)
        np.testing.assert_array_equal(read_dicom(files).image, expected)

    @pytest.mark.parametrize("implicit", [False, True])
    def test_a_file_without_preamble_and_meta(self, tmp_path: Path, implicit: bool) -> None:
        files = write(tmp_path)
        for file in files:
            dataset = dcmread(file)
            del dataset.file_meta, dataset.preamble
            dataset.save_as(file, enforce_file_format=False, implicit_vr=implicit, little_endian=True)
        np.testing.assert_array_equal(read_dicom(files).image, voxels())

    def test_missing_codec_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = write(tmp_path)
        dataset = dcmread(files[2])
        dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
        dataset.save_as(files[2], enforce_file_format=True)

        def no_plugin(*_: object, **__: object) -> None:
            raise RuntimeError("no decoder")

        monkeypatch.setattr("medgen.read.pixels.pixel_array", no_plugin)
        with pytest.raises(UnreadableError, match=r"JPEG 2000.*pip install pylibjpeg-openjpeg"):
            read_dicom(files)

    def test_monochrome1_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnreadableError, match="MONOCHROME1"):
            read_dicom(write(tmp_path, PhotometricInterpretation="MONOCHROME1"))

    def test_constant_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(IntensityError, match="all 7"):
            read_dicom(write(tmp_path, np.full(SHAPE, 7)))

    def test_truncated_pixels(self, tmp_path: Path) -> None:
        files = write(tmp_path)
        files[3].write_bytes(files[3].read_bytes()[:-20])
        with pytest.raises(UnreadableError, match=r"0004.dcm: expected 63 pixels, got 53"):
            read_dicom(files)


class TestCompany:
    """Other objects in the same folder."""

    def test_localizer_capture_colour_and_foreign_files(self, tmp_path: Path) -> None:
        files = write(tmp_path)
        write(tmp_path / "l", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.2.3.1")
        write(tmp_path / "s", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", SeriesInstanceUID="1.2.3.2")
        write(tmp_path / "c", SamplesPerPixel=3, SeriesInstanceUID="1.2.3.3")
        write(tmp_path / "w", SeriesDescription="AAHead_Scout", SeriesInstanceUID="1.2.3.4")
        assert len(files_in(tmp_path)) == 5 * len(files)
        np.testing.assert_array_equal(read_dicom(files_in(tmp_path)).image, voxels())

    def test_nothing_but_a_capture(self, tmp_path: Path) -> None:
        with pytest.raises(UnreadableError, match="secondary capture"):
            read_dicom(write(tmp_path, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"))

    def test_two_series_are_not_mixed(self, tmp_path: Path) -> None:
        files = [*write(tmp_path / "a"), *write(tmp_path / "b", SeriesInstanceUID="1.2.3")]
        with pytest.raises(GeometryError, match="expected one volume in 12 DICOM files, got 2"):
            read_dicom(files)

    def test_identical_copies_are_dropped(self, tmp_path: Path) -> None:
        files = write(tmp_path)
        files.append(Path(shutil.copy(files[2], tmp_path / "copy.dcm")))
        other = dcmread(files[4])
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        other.save_as(tmp_path / "renamed.dcm", enforce_file_format=True)
        volume = read_dicom([*files, tmp_path / "renamed.dcm"])
        np.testing.assert_array_equal(volume.image, voxels())
        assert volume.flags == ("duplicates-dropped",)

    @pytest.mark.parametrize("new_uid", [False, True])
    def test_conflicting_copies_are_refused(self, tmp_path: Path, new_uid: bool) -> None:
        files = write(tmp_path)
        other = dcmread(files[2])
        other.PixelData = bytes(len(other.PixelData))
        if new_uid:
            other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        other.save_as(tmp_path / "other.dcm", enforce_file_format=True)
        with pytest.raises(GeometryError, match=r"1 slices exist in different versions|1 of 6 slice positions hold"):
            read_dicom([*files, tmp_path / "other.dcm"])


class TestGate:
    """What is not a regular perpendicular grid is refused, with its numbers."""

    def test_missing_slices(self, tmp_path: Path) -> None:
        files = write(tmp_path, voxels((5, 4, 12)))
        del files[4:6]
        with pytest.raises(
            GeometryError, match=r"2 slices missing: 10 slices mostly 2.3 mm apart, but 6.9 mm between slices 4 and 5"
        ):
            read_dicom(files)

    def test_uneven_slices(self, tmp_path: Path) -> None:
        files = write(tmp_path, edit=lambda d, i: moved(d, oblique_affine(), along=0.4 * (i == 3)))
        with pytest.raises(GeometryError, match=r"uneven slices: 6 slices lie 1.9 to 2.7 mm apart"):
            read_dicom(files)

    def test_rounding_is_no_irregularity(self, tmp_path: Path) -> None:
        def edit(dataset: Dataset, index: int) -> None:
            dataset.ImagePositionPatient = [f"{float(v):.1f}" for v in dataset.ImagePositionPatient]

        volume = read_dicom(write(tmp_path, edit=edit))
        assert volume.grid.spacing_mm == pytest.approx(SPACING, abs=0.03)

    def test_gantry_tilt(self, tmp_path: Path) -> None:
        lean = SPACING[2] * np.tan(np.radians(18.5))
        files = write(tmp_path, edit=lambda d, i: moved(d, oblique_affine(), down=lean * i))
        with pytest.raises(GeometryError, match=r"gantry tilt: the stack leans 18.5 degrees"):
            read_dicom(files)

    def test_mixed_orientations(self, tmp_path: Path) -> None:
        def edit(dataset: Dataset, index: int) -> None:
            if index == 3:
                dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]

        with pytest.raises(
            GeometryError, match=r"mixed orientations: 1 of 6 slices are turned by up to 1[79].\d degrees"
        ):
            read_dicom(write(tmp_path, edit=edit))

    def test_mixed_frames_of_reference(self, tmp_path: Path) -> None:
        def edit(dataset: Dataset, index: int) -> None:
            if index > 3:
                dataset.FrameOfReferenceUID = "1.2.9"

        with pytest.raises(GeometryError, match="the 6 slices have 2 frames of reference"):
            read_dicom(write(tmp_path, edit=edit), allow_irregular=True)

    @pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
    def test_missing_geometry(self, tmp_path: Path, keyword: str) -> None:
        def edit(dataset: Dataset, index: int) -> None:
            if index == 2:
                delattr(dataset, keyword)

        with pytest.raises(GeometryError, match=f"1 of 6 slices lack a valid {keyword}"):
            read_dicom(write(tmp_path, edit=edit), allow_irregular=True)

    def test_a_single_slice_takes_its_thickness(self, tmp_path: Path) -> None:
        files = write(tmp_path, SliceThickness=3.5)
        volume = read_dicom(files[2:3])
        assert volume.image.shape == (*SHAPE[:2], 1)
        assert volume.grid.spacing_mm == pytest.approx((*SPACING[:2], 3.5))
        assert volume.flags == ("single-slice",)

    def test_a_single_slice_without_thickness(self, tmp_path: Path) -> None:
        files = write(tmp_path, edit=lambda d, _: delattr(d, "SliceThickness"))
        with pytest.raises(GeometryError, match="a single slice, and its header states no thickness"):
            read_dicom(files[:1])


class TestIrregular:
    """Resampling: what is linear in the patient's millimetres stays exactly what it was."""

    @settings(max_examples=15, deadline=None)
    @given(
        steps=st.lists(st.floats(0.8, 4.0), min_size=5, max_size=8),
        lean=st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6)),
    )
    def test_a_ramp_survives(
        self, tmp_path_factory: pytest.TempPathFactory, steps: list[float], lean: tuple[float, float]
    ) -> None:
        shape, affine = (11, 13, len(steps)), oblique_affine((0.7, 1.1, 1.0))
        heights = np.cumsum(steps) - steps[0]
        truth = np.empty(shape)
        for k, height in enumerate(heights):
            plane = affine.copy()
            axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
            plane[:3, 3] += axes @ (lean[0] * height, lean[1] * height, height)
            truth[:, :, k] = world_ramp(plane, (*shape[:2], 1))[:, :, 0]

        def edit(dataset: Dataset, index: int) -> None:
            h = heights[index]
            moved(dataset, affine, across=lean[0] * h, down=lean[1] * h, along=h - index)
            dataset.RescaleSlope, dataset.RescaleIntercept = "0.02", "0"

        files = write_series(tmp_path_factory.mktemp("series"), truth * 50, affine, "MR", edit=edit)
        volume = read_dicom(files, allow_irregular=True)
        inside = volume.image > truth.min() + 1  # elsewhere the lowest value was mixed in
        inside &= _covered(volume.grid, affine, heights, lean, shape)
        assert inside.any()
        np.testing.assert_allclose(
            volume.image[inside], world_ramp(volume.grid.affine, volume.grid.shape)[inside], atol=0.05
        )

    def test_missing_slices_are_filled_between(self, tmp_path: Path) -> None:
        affine = oblique_affine()
        ramp = world_ramp(affine, (6, 5, 10))
        files = write(tmp_path, ramp)
        del files[3:5]
        volume = read_dicom(files, allow_irregular=True)
        assert volume.flags == ("regridded",)
        assert not volume.grid.differs_from(Grid((6, 5, 10), affine))
        np.testing.assert_allclose(volume.image, ramp, atol=1.0)  # written as integers

    def test_a_regular_series_is_left_alone(self, tmp_path: Path) -> None:
        volume = read_dicom(write(tmp_path), allow_irregular=True)
        assert volume.flags == ()
        np.testing.assert_array_equal(volume.image, voxels())

    def test_the_tilted_grid_covers_every_slice(self, tmp_path: Path) -> None:
        lean = SPACING[1] * 2.0  # two whole rows a slice: every value can be found again
        volume = read_dicom(
            write(tmp_path, voxels() + 1, edit=lambda d, i: moved(d, oblique_affine(), down=lean * i)),
            allow_irregular=True,
        )
        assert volume.grid.shape == (SHAPE[0], SHAPE[1] + 2 * (SHAPE[2] - 1), SHAPE[2])
        for k in range(SHAPE[2]):
            np.testing.assert_allclose(volume.image[:, 2 * k : 2 * k + SHAPE[1], k], voxels()[:, :, k] + 1, atol=0.5)
            assert (volume.image[:, : 2 * k, k] == voxels().min() + 1).all()


def _covered(
    grid: Grid, affine: np.ndarray, heights: np.ndarray, lean: tuple[float, float], shape: tuple[int, int, int]
) -> np.ndarray:
    """Voxels for which both neighbouring slices hold all four pixels around the voxel's foot."""
    places = np.einsum("ij,jxyz->ixyz", np.linalg.inv(affine)[:3] @ grid.affine, _homogeneous(grid.shape))
    height = places[2]
    upper = np.clip(np.searchsorted(heights, height - 1e-6), 1, len(heights) - 1)
    good = height <= heights[-1] + 1e-6
    for side in (upper - 1, upper):
        x, y = places[0] - lean[0] * heights[side] / 0.7, places[1] - lean[1] * heights[side] / 1.1
        good &= (x > 0) & (x < shape[0] - 1) & (y > 0) & (y < shape[1] - 1)
    return good


def _homogeneous(shape: tuple[int, int, int]) -> np.ndarray:
    return np.concatenate([np.indices(shape, dtype=float), np.ones((1, *shape))])


class TestEnhanced:
    def test_one_volume(self, tmp_path: Path) -> None:
        volume = read_dicom([write_enhanced(tmp_path / "e.dcm", {5.0: voxels()}, oblique_affine())])
        np.testing.assert_allclose(volume.image, voxels() * 1.5 - 3)
        assert not volume.grid.differs_from(Grid(SHAPE, oblique_affine()))

    def test_two_echoes_are_two_volumes(self, tmp_path: Path) -> None:
        file = write_enhanced(tmp_path / "e.dcm", {4.9: voxels(seed=1), 9.8: voxels(seed=2)}, oblique_affine())
        with pytest.raises(GeometryError, match=r"got 2: 6 slices with echo=4.9, 6 slices with echo=9.8"):
            read_dicom([file])
        second = read_dicom([file], volume="echo=9.8")
        np.testing.assert_allclose(second.image, voxels(seed=2) * 2.0 - 3)
