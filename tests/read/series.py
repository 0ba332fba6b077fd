"""Small DICOM series with known truth: oblique, unequal spacing, and every way in which a real one is irregular."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medgen.geometry import Grid, Planes, ras_to_lps
from medgen.simulate.dicom import write_series

SHAPE = (9, 7, 6)
SPACING = (0.7, 1.1, 2.3)
Edit = Callable[[Dataset, int], None]


def oblique_affine(spacing: tuple[float, float, float] = SPACING, degrees: float = 17.0) -> npt.NDArray[np.float64]:
    """Turns twice, so that no axis is parallel to a world axis; right-handed, as a stack sorted along its normal is."""
    a, b = np.radians(degrees), np.radians(-0.6 * degrees)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(spacing)
    affine[:3, 3] = (21.5, -14.25, 33.0)
    return affine


def voxels(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 1000, shape)


def world_ramp(affine: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """A function that is linear in the patient's millimetres: linear interpolation reproduces it anywhere."""
    points = (
        np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices(shape, dtype=float)) + affine[:3, 3, None, None, None]
    )
    return 500.0 + 3.0 * points[0] - 2.0 * points[1] + 1.5 * points[2]


def write(folder: Path, image: npt.ArrayLike | None = None, *, edit: Edit | None = None, **tags: Any) -> list[Path]:
    """Writes the standard series, or a given image on its affine."""

    def apply(dataset: Dataset, index: int) -> None:
        for keyword, value in tags.items():
            if keyword in dataset:
                delattr(dataset, keyword)  # a new element: the old one may be shared between datasets
            setattr(dataset, keyword, value)
        if edit:
            edit(dataset, index)

    return write_series(folder, voxels() if image is None else image, oblique_affine(), "MR", edit=apply)


def moved(
    dataset: Dataset, affine: npt.NDArray[np.float64], across: float = 0, down: float = 0, along: float = 0
) -> None:
    """Moves a slice by millimetres along the grid's own axes."""
    axes = ras_to_lps(affine)[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    place = np.array(dataset.ImagePositionPatient, dtype=float) + axes @ np.array([across, down, along])
    dataset.ImagePositionPatient = [f"{v:.8f}"[:16] for v in place]


def write_enhanced(file: Path, volumes: dict[float, npt.NDArray[np.int64]], affine: npt.NDArray[np.float64]) -> Path:
    """Writes one enhanced MR file whose frames, interleaved and upside down, make a volume for each echo time [ms]."""
    first = next(iter(volumes.values()))
    columns, rows, count = first.shape
    planes = Planes.of(Grid((columns, rows, count), affine))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(file)])
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.1", "1.2.2", "1.2.3"
    dataset.Modality, dataset.SeriesDescription = "MR", "enhanced"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, count * len(volumes)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.SharedFunctionalGroupsSequence = [
        _item(
            PixelMeasuresSequence=[_item(PixelSpacing=list(planes.pixel_spacing), SliceThickness=planes.spacing_mm)],
            PlaneOrientationSequence=[_item(ImageOrientationPatient=[f"{v:.8f}" for v in planes.orientation])],
        )
    ]
    frames, pixels = [], []
    for index in reversed(range(count)):
        for number, (echo, image) in enumerate(volumes.items(), 1):
            slope = 1.0 + 0.5 * number
            frames.append(
                _item(
                    FrameContentSequence=[_item(StackID="1", InStackPositionNumber=index + 1)],
                    PlanePositionSequence=[_item(ImagePositionPatient=[f"{v:.6f}" for v in planes.positions[index]])],
                    MREchoSequence=[_item(EffectiveEchoTime=echo)],
                    PixelValueTransformationSequence=[_item(RescaleSlope=slope, RescaleIntercept=-3.0)],
                )
            )
            pixels.append(image[:, :, index].T.astype("<u2"))
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.PixelData = np.stack(pixels).tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    return file


def _item(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset
