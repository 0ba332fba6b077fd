"""Classic DICOM series of simulated images, for the demonstration and for tests: valid MR and CT, nobody's."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from medgen.geometry import Grid, Planes

CT_INTERCEPT_HU = -1024.0
DAY, TIME = "20000101", "120000"  # of all that is simulated


def write_series(
    folder: Path,
    image: npt.ArrayLike,
    affine: npt.ArrayLike,
    modality: str = "MR",
    *,
    seed: int = 0,
    tags: Mapping[str, Any] | None = None,
    edit: Callable[[Dataset, int], None] | None = None,
) -> list[Path]:
    """Writes one series, one file a slice, and returns the files in order of the third array axis.

    Args:
        folder: where to; made if it is missing.
        image: voxels `(columns, rows, slices)`: axis 0 runs along a row, as in the volume that a reader returns. MR is
            rounded to unsigned 16 bits, CT `[HU]` to 16 bits with slope 1 and intercept -1024.
        affine: voxel indices to RAS+ millimetres, `(4, 4)`; any spacing and obliquity.
        modality: `"MR"` or `"CT"`.
        seed: chooses patient and study. Series UIDs follow from seed, modality, grid and tags: same call, same UIDs.
        tags: values by DICOM keyword that replace or add to those of every slice.
        edit: called with each dataset and its slice index just before it is written; for what `tags` cannot say.

    Example:
        A series with a rescale slope per slice::

            def edit(dataset, index):
                dataset.RescaleSlope, dataset.RescaleIntercept = 1 + 0.1 * index, 0
    """
    voxels = np.asarray(image)
    grid = Grid((voxels.shape[0], voxels.shape[1], voxels.shape[2]), np.asarray(affine, dtype=np.float64))
    planes = Planes.of(grid)
    offset = CT_INTERCEPT_HU if modality == "CT" else 0.0
    series = f"{modality} {seed} {grid.shape} {grid.affine.tolist()} {sorted((tags or {}).items())}"
    stored = np.clip(np.rint(voxels - offset), 0, 65535).astype("<u2")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(grid.shape[2]):
        dataset = _identity(modality, seed, series)
        dataset.update(deepcopy(_CT if modality == "CT" else _MR))  # elements are shared otherwise
        _place(dataset, planes, index, series)
        pixels = np.ascontiguousarray(stored[:, :, index].T)
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelData = pixels.tobytes()
        for keyword, value in (tags or {}).items():
            setattr(dataset, keyword, value)
        if edit:
            edit(dataset, index)
        files.append(folder / f"{index + 1:04d}.dcm")
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def dataset_of(**values: Any) -> Dataset:  # noqa: ANN401  # DICOM values are of any type
    """Returns a dataset with these elements, by keyword."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


_MR = dataset_of(
    SOPClassUID=MRImageStorage,
    ImageType=["ORIGINAL", "PRIMARY", "OTHER"],
    ScanningSequence="GR",
    SequenceVariant="SP",
    ScanOptions="",
    MRAcquisitionType="3D",
    RepetitionTime=18.0,
    EchoTime=5.0,
    FlipAngle=30.0,
    EchoTrainLength=1,
    MagneticFieldStrength=1.5,
)
_CT = dataset_of(
    SOPClassUID=CTImageStorage,
    ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
    KVP=120,
    AcquisitionNumber=1,
    RescaleIntercept=CT_INTERCEPT_HU,
    RescaleSlope=1,
    RescaleType="HU",
)


def simulated_study(seed: int, description: str) -> Dataset:
    """Returns patient and study of a simulated person."""
    return dataset_of(
        SpecificCharacterSet="ISO_IR 192",
        PatientName="Phantom^Simulated",
        PatientID=f"PHANTOM-{seed}",
        PatientBirthDate="",
        PatientSex="O",
        StudyInstanceUID=generate_uid(entropy_srcs=["medgen simulated study", str(seed)]),
        StudyID=str(seed),
        StudyDate=DAY,
        StudyTime=TIME,
        AccessionNumber="",
        ReferringPhysicianName="",
        StudyDescription=description,
    )


def _identity(modality: str, seed: int, series: str) -> Dataset:
    """Everything that is the same in all slices, but for the modality module."""
    dataset = simulated_study(seed, "Simulated head")
    own = dataset_of(
        Modality=modality,
        SeriesInstanceUID=generate_uid(entropy_srcs=["medgen simulated series", series]),
        SeriesNumber=1,
        SeriesDescription="T1w" if modality == "MR" else "Head",
        BodyPartExamined="HEAD",
        PatientPosition="HFS",
        FrameOfReferenceUID=generate_uid(entropy_srcs=["medgen simulated frame", dataset.StudyInstanceUID]),
        PositionReferenceIndicator="",
        Manufacturer="medgen",
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=0,
    )
    dataset.update(own)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _place(dataset: Dataset, planes: Planes, index: int, series: str) -> None:
    """What differs from slice to slice."""
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["medgen simulated slice", series, str(index)])
    dataset.InstanceNumber = index + 1
    dataset.PixelSpacing = [format_number_as_ds(step) for step in planes.pixel_spacing]
    dataset.ImageOrientationPatient = [format_number_as_ds(cosine) for cosine in planes.orientation.tolist()]
    dataset.ImagePositionPatient = [format_number_as_ds(place) for place in planes.positions[index].tolist()]
    dataset.SliceLocation = format_number_as_ds(float(planes.locations[index]))
    dataset.SliceThickness = format_number_as_ds(planes.spacing_mm)
