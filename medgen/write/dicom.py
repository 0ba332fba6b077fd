"""A result as a derived DICOM series beside its source: classic MR or CT, one file a slice."""

import json
from collections.abc import MutableSequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

import medgen
from medgen.case import OutputKind, Result
from medgen.errors import OutputError
from medgen.geometry import Grid, Planes
from medgen.write.atomic import atomic_folder
from medgen.write.identity import Identity, identity_of, uid_of
from medgen.write.rounding import Extent, extent_of
from medgen.write.sources import Reference, in_slices, instance_numbers, references_of

AIR_HU = -1024
PADDING_HU = -1500  # what is not above it was never measured
_TWELVE_BITS = 4095
_SOFT_TISSUE_HU = (40.0, 400.0)  # window centre and width
_WINDOW_PERCENTILES = (1.0, 99.0)
_WINDOW_SAMPLES = 200_000
# Written out as (value, scheme, meaning): pydicom's dictionary of codes takes a third of a second to import.
Code = tuple[str, str, str]
SPATIAL_RESAMPLING: Code = ("113085", "DCM", "Spatial resampling")
PIXEL_SUBTRACTION: Code = ("113062", "DCM", "Pixel by pixel subtraction")
SOURCE_IMAGE: Code = ("121322", "DCM", "Source image for image processing operation")
PROCESSING_EQUIPMENT: Code = ("109102", "DCM", "Processing Equipment")
ACQUISITION_EQUIPMENT: Code = ("109101", "DCM", "Acquisition Equipment")
_MADE = {"synthetic": "Synthetic image, computed by a generative model"}  # by process


@dataclass(frozen=True)
class Storage:
    """How voxels become stored integers: `rint(value * scale) - intercept`.

    Attributes:
        scale: 1, but for images whose values are too close together, or too large, for integers.
        intercept: RescaleIntercept, 0 for MR.
        bits: BitsStored.
        signed: two's complement.
    """

    scale: float
    intercept: int
    bits: int
    signed: bool

    def encode(self, plane: npt.NDArray[np.float32]) -> bytes:
        """Returns the bytes of one slice `(columns, rows)`, row by row."""
        stored = np.rint(plane.T * np.float32(self.scale)) - self.intercept
        return bytes(stored.astype("<i2" if self.signed else "<u2").tobytes())


def write_dicom_series(result: Result, folder: Path) -> None:
    """Writes a result as a series `0001.dcm`, `0002.dcm`, ... in `folder`, whole or not at all.

    Beside a DICOM source the series joins its study and frame of reference; every slice has the source's orientation
    and names the source slice that it comes from. Another input becomes a study of its own. UIDs follow from source
    and provenance, and nothing depends on the time, so that doing it again gives the same files.

    CT is stored in unsigned 12 or 16 bits with slope 1 and intercept -1024 (lower only if there are lower values). MR
    has no rescale: values are rounded, or if they span too little multiplied first, as DerivationDescription says.
    Labels are stored as they are, and are not called Hounsfield units. A CT that was processed keeps what it says
    of its acquisition, and its window.

    Args:
        result: of modality MR or CT.
        folder: an existing one is replaced.

    Raises:
        OutputError: another modality, values that 16 bits cannot hold, a sheared grid, a source that is gone, or a
            place that cannot be written to.
    """
    identity = identity_of(result.case, result.provenance.input_sha256)
    image, grid = in_slices(result.image, result.grid, identity.planes)
    planes = planes_of(grid)
    storage = _storage(extent_of(image), result)
    references = references_of(identity.planes, planes)
    numbers = instance_numbers(references)
    series = _series(result, identity, storage)
    _window(series, image, storage, result.kind.unit)
    if result.kind.modality == "CT" and not result.kind.synthetic:
        _as_acquired(series, identity)
    with atomic_folder(folder) as part:
        for index, number in enumerate(numbers):
            _slice(series, identity, references[index], number)
            _place(series, planes, index, references[index])
            series.add_new("PixelData", "OW", storage.encode(image[:, :, index]))
            series.save_as(part / f"{number:04d}.dcm", enforce_file_format=True)


def planes_of(grid: Grid) -> Planes:
    """Returns the slices of a grid as DICOM states them.

    Raises:
        OutputError: the grid has a shear.
    """
    planes = Planes.of(grid)
    difference = planes.grid(rows=grid.shape[1], columns=grid.shape[0]).differs_from(grid)
    if difference:
        raise OutputError(
            f"expected perpendicular axes for DICOM, got {grid.describe()} with a shear: {difference}; "
            "write NIfTI (--format nifti)"
        )
    return planes


def _storage(extent: Extent, result: Result) -> Storage:
    if result.kind.unit == "label" and result.kind.modality in {"CT", "MR"} and extent.fits(np.uint16):
        return Storage(1.0, 0, 12 if extent.high <= _TWELVE_BITS else 16, signed=False)
    if result.kind.modality == "CT":
        intercept = min(AIR_HU, int(np.floor(extent.low)))
        highest = round(extent.high) - intercept
        if highest > np.iinfo(np.uint16).max:
            raise OutputError(f"expected CT numbers that fit 16 bits, got {extent.low:.4g} to {extent.high:.4g}")
        return Storage(1.0, intercept, 12 if highest <= _TWELVE_BITS else 16, signed=False)
    if result.kind.modality != "MR":
        raise OutputError(
            f"expected modality MR or CT for a DICOM series, got {result.kind.modality or 'none'}; "
            "write NIfTI (--format nifti)"
        )
    signed = extent.low < 0
    if extent.rounds_well and extent.fits(np.int16 if signed else np.uint16):
        small = not signed and extent.high <= _TWELVE_BITS
        return Storage(1.0, 0, 12 if small else 16, signed)
    largest = max(abs(extent.low), abs(extent.high))
    return Storage(_TWELVE_BITS / largest if largest else 1.0, 0, 16 if signed else 12, signed)


def _series(result: Result, identity: Identity, storage: Storage) -> Dataset:
    """Everything that is the same in all slices."""
    kind, provenance = result.kind, result.provenance
    series = Dataset()
    series.update(identity.patient_and_study)
    series.Modality = kind.modality
    series.SOPClassUID = CTImageStorage if kind.modality == "CT" else MRImageStorage
    series.SeriesInstanceUID = series_uid(result, identity)
    series.SeriesNumber = identity.series_number
    series.SeriesDescription = ascii_text(said(kind, kind.description or kind.suffix), 64)
    if kind.synthetic:
        series.SyntheticData = "YES"
    made = _MADE.get(kind.process, f"Image {kind.process} by a neural network")
    flags = f" Flags: {', '.join(result.flags)}." if result.flags else ""
    series.ImageComments = ascii_text(f"{made}. Not for diagnosis.{flags}", 1024)
    series.BurnedInAnnotation = "NO"
    series.DerivationDescription = ascii_text(_derivation(result, storage), 1024)
    if "regridded" in result.flags:
        series.DerivationCodeSequence = [code_item(SPATIAL_RESAMPLING)]
    series.Manufacturer = "medgen"
    series.ManufacturerModelName = ascii_text(provenance.bundle, 64)
    series.SoftwareVersions = [f"medgen {medgen.__version__}", ascii_text(f"bundle {provenance.bundle_version}", 64)]
    series.ContributingEquipmentSequence = _equipment(result, identity)
    series.SamplesPerPixel = 1
    series.PhotometricInterpretation = "MONOCHROME2"
    series.BitsAllocated, series.BitsStored, series.HighBit = 16, storage.bits, storage.bits - 1
    series.PixelRepresentation = int(storage.signed)
    _modality_module(series, storage, kind.unit)
    # Says that what was copied is already encoded as the file will be, so that pydicom writes its bytes unchanged.
    series.set_original_encoding(is_implicit_vr=False, is_little_endian=True, character_encoding=encodings_of(series))
    series.file_meta = FileMetaDataset()
    series.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    series.file_meta.MediaStorageSOPClassUID = series.SOPClassUID
    return series


def _as_acquired(series: Dataset, identity: Identity) -> None:
    """Of a scan that is still that scan: how it was acquired, how it is shown, and what of it was never measured."""
    if identity.sop_class == CTImageStorage:
        series.update(identity.acquisition)
    if series.RescaleIntercept <= PADDING_HU:
        series.add_new("PixelPaddingValue", "US", 0)  # the intercept is the lowest value


def encodings_of(series: Dataset) -> str | MutableSequence[str]:
    """Returns how the text of a dataset is encoded, as pydicom calls it."""
    stated = series.get("SpecificCharacterSet")
    return convert_encodings(stated) if stated else default_encoding


def _modality_module(series: Dataset, storage: Storage, unit: str) -> None:
    """The CT or MR Image Module (PS3.3 C.8.2.1, C.8.3.1) of an image that was not scanned: empty where allowed."""
    if series.Modality == "CT":
        series.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        series.RescaleIntercept, series.RescaleSlope = storage.intercept, 1
        series.RescaleType = "US" if unit == "label" else "HU"  # US: unspecified
        empty = ["KVP", "AcquisitionNumber"]
    else:
        series.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        series.ScanningSequence, series.SequenceVariant = "RM", "NONE"
        empty = ["ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"]
    for keyword in empty:
        setattr(series, keyword, None)


def _slice(series: Dataset, identity: Identity, references: tuple[Reference, ...], number: int) -> None:
    """Who this slice is, and where it comes from."""
    series.SOPInstanceUID = uid_of(series.SeriesInstanceUID, str(number))
    series.file_meta.MediaStorageSOPInstanceUID = series.SOPInstanceUID
    series.InstanceNumber = number
    items = []
    for reference in references:
        item = Dataset()
        item.ReferencedSOPClassUID = identity.sop_class
        item.ReferencedSOPInstanceUID = reference.sop_uid
        if reference.frame is not None:
            item.ReferencedFrameNumber = reference.frame
        item.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE)]
        item.SpatialLocationsPreserved = "YES" if len(references) == 1 else "NO"
        items.append(item)
    if items:
        series.SourceImageSequence = items


def _place(series: Dataset, planes: Planes, index: int, references: tuple[Reference, ...]) -> None:
    """Where this slice lies."""
    own = references[0].thickness_mm if len(references) == 1 else None
    series.PixelSpacing = [format_number_as_ds(step) for step in planes.pixel_spacing]
    series.ImageOrientationPatient = [format_number_as_ds(cosine) for cosine in planes.orientation.tolist()]
    series.ImagePositionPatient = [format_number_as_ds(place) for place in planes.positions[index].tolist()]
    series.SliceLocation = format_number_as_ds(float(planes.locations[index]))
    series.SliceThickness = format_number_as_ds(own or planes.spacing_mm)
    series.SpacingBetweenSlices = format_number_as_ds(planes.spacing_mm)


def _window(series: Dataset, image: npt.NDArray[np.float32], storage: Storage, unit: str) -> None:
    """Sizes, and how to show the values: soft tissue for CT numbers, all labels, else percentiles of the foreground."""
    series.Columns, series.Rows = image.shape[:2]
    centre, width = _SOFT_TISSUE_HU
    if unit == "label":
        highest = max(float(image.max()), 1.0)
        centre, width = highest / 2, highest
    elif series.Modality != "CT":
        step = max(1, round((image.size / _WINDOW_SAMPLES) ** (1 / 3)))
        sample = image[::step, ::step, ::step]
        low, high = np.percentile(sample[sample != 0] if sample.any() else sample, _WINDOW_PERCENTILES) * storage.scale
        centre, width = float(low + high) / 2, max(float(high - low), 1.0)
    series.WindowCenter, series.WindowWidth = (
        format_number_as_ds(round(centre, 2)),
        format_number_as_ds(round(width, 2)),
    )


def series_uid(result: Result, identity: Identity) -> UID:
    """Returns the UID of the series of a result: the same for the same source and provenance."""
    made_by = json.dumps(result.provenance.to_json(), sort_keys=True, default=str)
    return uid_of("series", identity.seed, result.kind.modality, result.kind.suffix, made_by)


def _derivation(result: Result, storage: Storage) -> str:
    made = result.provenance
    scaled = f" Stored values are {storage.scale:.6g} times the network's output." if storage.scale != 1 else ""
    resampled = " On a regular grid, resampled from irregular slices." if "regridded" in result.flags else ""
    return (
        f"{said(result.kind, result.kind.description)} computed by medgen {medgen.__version__}, bundle {made.bundle} "
        f"{made.bundle_version}, weights sha256 {made.weights_sha256[:16]}. Not for diagnosis.{resampled}{scaled}"
    )


def _equipment(result: Result, identity: Identity) -> list[Dataset]:
    """What made the source, where known, and what made this."""
    ours = Dataset()
    ours.PurposeOfReferenceCodeSequence = [code_item(PROCESSING_EQUIPMENT)]
    ours.Manufacturer = "medgen"
    ours.ManufacturerModelName = ascii_text(result.provenance.bundle, 64)
    ours.SoftwareVersions = [ascii_text(f"{name} {number}", 64) for name, number in result.provenance.versions.items()]
    ours.ContributionDescription = ascii_text(said(result.kind, result.kind.description), 1024)
    if "Manufacturer" not in identity.equipment:
        return [ours]
    scanner = Dataset()
    scanner.update(identity.equipment)
    scanner.PurposeOfReferenceCodeSequence = [code_item(ACQUISITION_EQUIPMENT)]
    return [scanner, ours]


def said(kind: OutputKind, description: str) -> str:
    """Returns a description that says what was done, whether the bundle's own does or not."""
    return description if kind.process in description.lower() else f"{kind.process.capitalize()} {description}".strip()


def ascii_text(text: str, longest: int) -> str:
    """Returns text that is valid in every character set of a source, without the separator of values."""
    plain = text.encode("ascii", "replace").decode().replace("\\", "/")
    return "".join(letter for letter in plain if letter.isprintable())[:longest]


def code_item(code: Code) -> Dataset:
    """Returns a code as an item of a sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item
