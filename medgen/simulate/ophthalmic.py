"""DICOM Ophthalmic Tomography of simulated B-scans, for the demonstration and for tests: valid, nobody's."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    OphthalmicPhotography8BitImageStorage,
    OphthalmicTomographyImageStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from medgen.geometry import Grid, Planes
from medgen.simulate.dicom import DAY, TIME, dataset_of, simulated_study

_NOT_OF_A_PHOTOGRAPH = (
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("DimensionIndexSequence", "DimensionOrganizationSequence", "AcquisitionDuration"),
    *("IlluminationWaveLength", "IlluminationPower", "IlluminationBandwidth", "InConcatenationNumber"),
    *("InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber", "AcquisitionNumber"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator"),
)


def write_opt(
    file: Path,
    image: npt.ArrayLike,
    *,
    spacing_um: Sequence[float] = (11.5, 3.87, 240.0),
    affine: npt.ArrayLike | None = None,
    placed: bool = True,
    laterality: str = "R",
    seed: int = 0,
    edit: Callable[[Dataset], None] | None = None,
) -> Path:
    """Writes one volume of B-scans as a multi-frame file of Ophthalmic Tomography, and returns the file.

    dciodvfy finds nothing wrong in it but that one file is a concatenation of one, as C.8.17.7 has it and C.7.6.16 not.

    Args:
        file: where to; its folder is made if it is missing.
        image: `(lateral, depth, B-scans)`, rounded to 8 bits, or to 16 where a value is above 255.
        spacing_um: lateral, axial and between B-scans; where they do not place it, two or none leave the rest unsaid.
        affine: voxel indices to RAS+ millimetres, `(4, 4)`, in place of one made of `spacing_um`.
        placed: every frame says where it lies; some scanners leave that out, although the standard asks for it.
        laterality: `"R"` or `"L"`.
        seed: chooses patient and study; UIDs follow from it, from the image and from the place.
        edit: called with the dataset just before it is written.
    """
    voxels = np.asarray(image)
    stored = np.clip(np.rint(voxels), 0, 65535)
    stored = stored.astype("<u1" if stored.max() <= 255 else "<u2")
    planes = _planes(voxels.shape, spacing_um, affine) if placed else None
    place = [*spacing_um, *(planes.positions.ravel().tolist() if planes else ())]
    series = f"{seed} {laterality} {voxels.shape} {voxels.sum()} {place}"
    dataset = _identity(seed, series)
    dataset.ImageLaterality = laterality
    dataset.Columns, dataset.Rows, dataset.NumberOfFrames = voxels.shape
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    if planes:
        dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["medgen simulated frame", str(seed)])
        dataset.PositionReferenceIndicator = ""
    dataset.SharedFunctionalGroupsSequence = [_shared(spacing_um, planes, laterality)]
    dataset.PerFrameFunctionalGroupsSequence = [_frame(index, planes) for index in range(voxels.shape[2])]
    _dimensions(dataset, series)
    pixels = np.ascontiguousarray(stored.transpose(2, 1, 0)).tobytes()
    dataset.add_new("PixelData", "OB" if stored.dtype.itemsize == 1 else "OW", pixels + b"\0" * (len(pixels) % 2))
    if edit:
        edit(dataset)
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(file, enforce_file_format=True)
    return file


def as_photograph(dataset: Dataset) -> None:
    """Makes the file a multi-frame Ophthalmic Photography image, which has no functional groups: an `edit`."""
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    if measures:
        dataset.PixelSpacing = measures[0].PixelSpacing
    for keyword in [*_acquisition().dir("Depth", "Along", "Across", "Axial"), *_NOT_OF_A_PHOTOGRAPH]:
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.SOPClassUID, dataset.Modality = OphthalmicPhotography8BitImageStorage, "OP"
    dataset.FrameIncrementPointer = 0x00181063
    dataset.FrameTime = "40"
    dataset.PatientOrientation, dataset.PatientEyeMovementCommanded = ["L", "F"], ""
    dataset.IlluminationTypeCodeSequence = dataset.ImagePathFilterTypeStackCodeSequence = []
    dataset.LensesCodeSequence = []


def _planes(shape: tuple[int, ...], spacing_um: Sequence[float], affine: npt.ArrayLike | None) -> Planes:
    if affine is None:
        lateral, axial, between = (um / 1000 for um in spacing_um)
        affine = np.diag([-lateral, -axial, between, 1.0])
    return Planes.of(Grid((shape[0], shape[1], shape[2]), np.asarray(affine, dtype=np.float64)))


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    return dataset_of(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _eye() -> Dataset:
    return _code("81745001", "SCT", "Eye")


def _identity(seed: int, series: str) -> Dataset:
    """All but the pixels and where they lie."""
    dataset = simulated_study(seed, "Simulated eye")
    study = dataset.StudyInstanceUID
    own = dataset_of(
        SeriesInstanceUID=generate_uid(entropy_srcs=["medgen simulated OCT", series]),
        SeriesNumber=1,
        SeriesDescription="Macula",
        SynchronizationFrameOfReferenceUID=generate_uid(entropy_srcs=["medgen simulated clock", study]),
        SynchronizationTrigger="NO TRIGGER",
        AcquisitionTimeSynchronized="N",
        Modality="OPT",
        Manufacturer="medgen",
        ManufacturerModelName="simulation",
        DeviceSerialNumber="1",
        SoftwareVersions="1",
        SOPClassUID=OphthalmicTomographyImageStorage,
        SOPInstanceUID=generate_uid(entropy_srcs=["medgen simulated OCT", series, "instance"]),
        InstanceNumber=1,
        ContentDate=DAY,
        ContentTime=TIME,
        AcquisitionDateTime=DAY + TIME,
        AcquisitionDuration=1.0,
        AcquisitionNumber=1,
        ImageType=["ORIGINAL", "PRIMARY"],
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        PresentationLUTShape="IDENTITY",
        LossyImageCompression="00",
        BurnedInAnnotation="NO",
        ConcatenationFrameOffsetNumber=0,
        InConcatenationNumber=1,
        InConcatenationTotalNumber=1,
        AcquisitionContextSequence=[],
    )
    dataset.update(own)
    dataset.update(_acquisition())
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _acquisition() -> Dataset:
    """The modules of Ophthalmic Tomography (PS3.3 C.8.17.7 to C.8.17.11): device, light, eye."""
    return dataset_of(
        AcquisitionDeviceTypeCodeSequence=[_code("392012008", "SCT", "Optical Coherence Tomography Scanner")],
        LightPathFilterTypeStackCodeSequence=[],
        DetectorType="CCD",
        IlluminationWaveLength=870.0,
        IlluminationPower=1200.0,
        IlluminationBandwidth=50.0,
        DepthSpatialResolution=7.0,
        MaximumDepthDistortion=0.5,
        AlongScanSpatialResolution=14.0,
        MaximumAlongScanDistortion=0.5,
        AcrossScanSpatialResolution=14.0,
        MaximumAcrossScanDistortion=0.5,
        AxialLengthOfTheEye=None,
        HorizontalFieldOfView=None,
        RefractiveStateSequence=[],
        EmmetropicMagnification=None,
        IntraOcularPressure=None,
        PupilDilated="",
        AnatomicRegionSequence=[_eye()],
    )


def _shared(spacing_um: Sequence[float], planes: Planes | None, laterality: str) -> Dataset:
    shared = dataset_of(
        PixelMeasuresSequence=[],
        FrameAnatomySequence=[dataset_of(FrameLaterality=laterality, AnatomicRegionSequence=[_eye()])],
    )
    if planes:
        steps = [*planes.pixel_spacing, planes.spacing_mm]
    else:
        lateral, axial, between = (um / 1000 for um in (*spacing_um, 0, 0, 0)[:3])
        steps = [axial, lateral, between]
    if steps[0] > 0:
        measures = dataset_of(PixelSpacing=[format_number_as_ds(step) for step in steps[:2]], SliceThickness="0.014")
        if steps[2] > 0:
            measures.SpacingBetweenSlices = format_number_as_ds(steps[2])
        shared.PixelMeasuresSequence = [measures]
    if planes:
        cosines = [format_number_as_ds(cosine) for cosine in planes.orientation.tolist()]
        shared.PlaneOrientationSequence = [dataset_of(ImageOrientationPatient=cosines)]
    return shared


def _frame(index: int, planes: Planes | None) -> Dataset:
    content = dataset_of(
        FrameAcquisitionDateTime=DAY + TIME,
        FrameReferenceDateTime=DAY + TIME,
        FrameAcquisitionDuration=1.0,
        FrameAcquisitionNumber=index + 1,
        StackID="1",
        InStackPositionNumber=index + 1,
        DimensionIndexValues=[1, index + 1],
    )
    frame = dataset_of(FrameContentSequence=[content])
    if planes:
        place = [format_number_as_ds(part) for part in planes.positions[index].tolist()]
        frame.PlanePositionSequence = [dataset_of(ImagePositionPatient=place)]
    return frame


def _dimensions(dataset: Dataset, series: str) -> None:
    organization = generate_uid(entropy_srcs=["medgen simulated OCT", series, "dimensions"])
    dataset.DimensionOrganizationSequence = [dataset_of(DimensionOrganizationUID=organization)]
    dataset.DimensionIndexSequence = [
        dataset_of(
            DimensionIndexPointer=pointer, FunctionalGroupPointer=0x00209111, DimensionOrganizationUID=organization
        )
        for pointer in (0x00209056, 0x00209057)  # StackID, InStackPositionNumber, of FrameContentSequence
    ]
