"""A map of scores as a DICOM Parametric Map: one multi-frame object of floats, beside its source."""

from pathlib import Path

import numpy as np
import pydicom
from highdicom.content import (
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
    VOILUTTransformation,
)
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

import medgen
from medgen.case import Result
from medgen.errors import OutputError
from medgen.geometry import Planes
from medgen.write.atomic import atomic_folder
from medgen.write.dicom import ascii_text, planes_of, said, series_uid
from medgen.write.identity import Identity, identity_of, uid_of
from medgen.write.sources import in_slices

_NO_UNITS = Code("1", "UCUM", "no units")
_QUANTITY = Code("anomaly-score", "99MEDGEN", "Anomaly score")
# What highdicom sets by the clock; the source's study says when instead, so that the same result is the same file.
_BY_THE_CLOCK = ("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime")


def write_parametric_map(result: Result, folder: Path) -> None:
    """Writes a map of scores as `folder/0001.dcm`, whole or not at all: float32 pixels, a frame a slice.

    Beside a DICOM source it joins its study and frame of reference, and each frame names the source slice that it
    comes from. Another input becomes a study of its own. UIDs follow from source and provenance.

    Args:
        result: of unit `score`.
        folder: an existing one is replaced.

    Raises:
        OutputError: a sheared grid, a source that is gone, or a place that cannot be written to.

    Source: DICOM PS3.3 A.75 (Parametric Map IOD), written by highdicom (Bridge et al., J Digit Imaging 35, 2022).
    """
    identity = identity_of(result.case, result.provenance.input_sha256)
    image, grid = in_slices(result.image, result.grid, identity.planes)
    planes = planes_of(grid)
    series = series_uid(result, identity)
    pixels = np.ascontiguousarray(image.transpose(2, 1, 0), dtype=np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    kind, made = result.kind, result.provenance
    pm = ParametricMap(
        source_images=_sources(identity, result, planes, (grid.shape[1], grid.shape[0])),
        pixel_array=pixels,
        series_instance_uid=series,
        series_number=identity.series_number,
        sop_instance_uid=uid_of(series, "1"),
        instance_number=1,
        manufacturer="medgen",
        manufacturer_model_name=ascii_text(made.bundle, 64),
        software_versions=ascii_text(f"medgen {medgen.__version__}, bundle {made.bundle_version}", 64),
        device_serial_number=made.weights_sha256[:16] or "none",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(low, high)],
        voi_lut_transformations=[_window(low, high)],
        content_label="ANOMALY_SCORE",
        content_description=ascii_text(said(kind, kind.description), 64),
        pixel_measures=PixelMeasuresSequence(
            pixel_spacing=planes.pixel_spacing,
            slice_thickness=planes.spacing_mm,
            spacing_between_slices=planes.spacing_mm,
        ),
        plane_orientation=PlaneOrientationSequence("PATIENT", planes.orientation.tolist()),
        plane_positions=[PlanePositionSequence("PATIENT", place.tolist()) for place in planes.positions],
    )
    _complete(pm, identity, result, series)
    with atomic_folder(folder) as part:
        pm.save_as(part / "0001.dcm", enforce_file_format=True)


def _window(low: float, high: float) -> VOILUTTransformation:
    # LINEAR alone may not be narrower than 1, which scores are.
    return VOILUTTransformation((low + high) / 2, max(high - low, 1e-6), voi_lut_function="LINEAR_EXACT")


def _mapping(low: float, high: float) -> RealWorldValueMapping:
    return RealWorldValueMapping(
        lut_label="SCORE",
        lut_explanation="Anomaly score, larger is less normal",
        unit=_NO_UNITS,
        value_range=(low, max(high, low + 1e-6)),
        slope=1.0,
        intercept=0.0,
        quantity_definition=_QUANTITY,
    )


def _sources(identity: Identity, result: Result, planes: Planes, size: tuple[int, int]) -> list[Dataset]:
    """The headers of the source images; of a source that is not DICOM, what stands for it, never written."""
    try:
        found: list[Dataset] = [
            pydicom.dcmread(path, stop_before_pixels=True) for path in result.case.files if identity.planes
        ]
    except OSError as error:
        raise OutputError(f"the source series can no longer be read: {error.strerror}") from error
    if found:
        for image in found:
            for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):  # made up where a source lacks them
                setattr(image, keyword, getattr(identity.patient_and_study, keyword))
            if not image.get("SliceThickness"):  # highdicom wants it, and a source need not have it
                image.SliceThickness = format_number_as_ds(planes.spacing_mm)
        return found
    stand_in = Dataset()
    stand_in.update(identity.patient_and_study)
    stand_in.SOPClassUID, stand_in.SOPInstanceUID = MRImageStorage, uid_of("stand-in", identity.seed)
    stand_in.SeriesInstanceUID = uid_of("stand-in series", identity.seed)
    stand_in.Modality, stand_in.InstanceNumber = "MR", 1
    stand_in.Rows, stand_in.Columns = size
    stand_in.PixelSpacing, stand_in.SliceThickness = list(planes.pixel_spacing), format_number_as_ds(planes.spacing_mm)
    stand_in.ImageOrientationPatient = planes.orientation.tolist()
    stand_in.ImagePositionPatient = planes.positions[0].tolist()
    stand_in.file_meta = FileMetaDataset()
    stand_in.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return [stand_in]


def _complete(pm: Dataset, identity: Identity, result: Result, series: str) -> None:
    """What a derived object of ours says besides, and nothing that depends on the clock or names what is not there."""
    pm.update(identity.patient_and_study)
    pm.SeriesDescription = ascii_text(said(result.kind, result.kind.description), 64)
    pm.ImageComments = "Scores computed by a neural network. Not for diagnosis."
    pm.BurnedInAnnotation = "NO"
    organization = uid_of("dimensions", series)
    for item in [*pm.get("DimensionOrganizationSequence", []), *pm.get("DimensionIndexSequence", [])]:
        item.DimensionOrganizationUID = organization
    for keyword in _BY_THE_CLOCK:
        if keyword in pm:
            day = keyword.endswith("Date")
            said_by_study = identity.patient_and_study.get("StudyDate" if day else "StudyTime")
            setattr(pm, keyword, str(said_by_study) if said_by_study else "19000101" if day else "000000")
    for item in pm.get("ContributingEquipmentSequence", [])[-1:]:  # highdicom's own
        item.pop("ContributionDateTime", None)
    if not identity.planes:
        _forget_stand_in(pm)


def _forget_stand_in(pm: Dataset) -> None:
    """Takes out what names source images that there are none of."""
    for keyword in ("ReferencedSeriesSequence", "SourceImageSequence"):
        if keyword in pm:
            delattr(pm, keyword)
    for frame in [*pm.get("SharedFunctionalGroupsSequence", []), *pm.PerFrameFunctionalGroupsSequence]:
        if "DerivationImageSequence" in frame:
            del frame.DerivationImageSequence
