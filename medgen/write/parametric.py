"""A map of scores as a DICOM Parametric Map: one multi-frame object of floats, beside its source."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
from medgen.geometry import Planes
from medgen.read.ophthalmic import BETWEEN_FLAG, SPACING_FLAG, UNEVEN_FLAG
from medgen.write.atomic import atomic_folder
from medgen.write.dicom import (
    PIXEL_SUBTRACTION,
    SOURCE_IMAGE,
    ascii_text,
    code_item,
    encodings_of,
    planes_of,
    said,
    series_uid,
)
from medgen.write.identity import Identity, identity_of, uid_of
from medgen.write.sources import Reference, in_slices, references_of

# What of the geometry is not the source's, since that does not say it.
_GUESSED = {
    SPACING_FLAG: "The size of pixels is not known: 1 mm stands for each.",
    BETWEEN_FLAG: "The distance of B-scans is not known: 1 mm stands for it.",
    UNEVEN_FLAG: "B-scans lie unevenly: their places are not the source's.",
}
_NO_UNITS = Code("1", "UCUM", "no units")
_QUANTITY = Code("anomaly-score", "99MEDGEN", "Anomaly score")
# What highdicom sets by the clock; the source's study says when instead, so that the same result is the same file.
_BY_THE_CLOCK = ("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime")


def write_parametric_map(result: Result, folder: Path) -> None:
    """Writes a map of scores as `folder/0001.dcm`, whole or not at all: float32 pixels, a frame a slice.

    Beside a DICOM source it joins its study and frame of reference, and each frame names the source slice that it
    comes from, or those on both sides of it. Another input becomes a study of its own. UIDs follow from source and
    provenance, and nothing depends on the time.

    highdicom makes the object for nobody: it refuses identities that are not quite valid, and quotes names in its
    warnings. Whose it is, and what it was made from, is put in afterwards, as in a derived series.

    Args:
        result: of unit `score`.
        folder: an existing one is replaced.

    Raises:
        OutputError: a sheared grid, a source that is gone, or a place that cannot be written to.

    Source: DICOM PS3.3 A.75 (Parametric Map IOD), written by highdicom (Bridge et al., J Digit Imaging 35, 2022).
    """
    identity = identity_of(result.case, result.provenance.input_sha256)
    # B-scans lie as they should, whichever of their axes has the longest steps.
    as_it_lies = result.image, result.grid
    image, grid = as_it_lies if result.case.kind == "picture" else in_slices(*as_it_lies, identity.planes)
    planes = planes_of(grid)
    series = series_uid(result, identity)
    pixels = np.ascontiguousarray(image.transpose(2, 1, 0), dtype=np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    kind, made = result.kind, result.provenance
    pm = ParametricMap(
        source_images=[_nobodys(identity, planes, (grid.shape[1], grid.shape[0]))],
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
    _describe(pm, identity, result, series)
    _refer(pm, identity, planes)
    pm.set_original_encoding(is_implicit_vr=False, is_little_endian=True, character_encoding=encodings_of(pm))
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


def _nobodys(identity: Identity, planes: Planes, size: tuple[int, int]) -> Dataset:
    """The header of an image that stands for the source while the object is made."""
    image = Dataset()
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"):
        setattr(image, keyword, "")
    image.AccessionNumber = image.ReferringPhysicianName = ""
    image.StudyInstanceUID = identity.patient_and_study.StudyInstanceUID
    image.FrameOfReferenceUID = identity.patient_and_study.FrameOfReferenceUID
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, uid_of("stand-in", identity.seed)
    image.SeriesInstanceUID = uid_of("stand-in series", identity.seed)
    image.Modality, image.InstanceNumber = "MR", 1
    image.Rows, image.Columns = size
    image.PixelSpacing, image.SliceThickness = list(planes.pixel_spacing), format_number_as_ds(planes.spacing_mm)
    image.ImageOrientationPatient = planes.orientation.tolist()
    image.ImagePositionPatient = planes.positions[0].tolist()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def _describe(pm: Dataset, identity: Identity, result: Result, series: str) -> None:
    """Whose it is and what a derived object of ours says besides; nothing that depends on the clock."""
    pm.update(identity.patient_and_study)
    pm.SeriesDescription = ascii_text(said(result.kind, result.kind.description), 64)
    guessed = [_GUESSED[flag] for flag in result.flags if flag in _GUESSED]
    flags = [f"Flags: {', '.join(result.flags)}."] if result.flags else []
    pm.ImageComments = " ".join(["Scores computed by a neural network. Not for diagnosis.", *guessed, *flags])
    if identity.anatomy:
        pm.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [identity.anatomy]
        pm.pop("Laterality", None)  # not beside that of frames (PS3.3 C.7.3.1)
    pm.BurnedInAnnotation = "NO"
    organization = uid_of("dimensions", series)
    for item in [*pm.get("DimensionOrganizationSequence", []), *pm.get("DimensionIndexSequence", [])]:
        item.DimensionOrganizationUID = organization
    for keyword in _BY_THE_CLOCK:
        if keyword in pm:
            setattr(pm, keyword, "19000101" if keyword.endswith("Date") else "000000")
    for item in pm.get("ContributingEquipmentSequence", []):
        item.pop("ContributionDateTime", None)


def _refer(pm: Dataset, identity: Identity, planes: Planes) -> None:
    """Names the source slices of every frame, and their series; of a source that is not DICOM, none."""
    references = references_of(identity.planes, planes)
    for frame in pm.PerFrameFunctionalGroupsSequence:  # in an order of highdicom's own
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64)
        own = references[int(np.linalg.norm(planes.positions - place, axis=1).argmin())]
        frame.DerivationImageSequence = [_derivation(identity, own)] if own else []
    for keyword in ("SourceImageSequence", "ReferencedSeriesSequence"):
        pm.pop(keyword, None)
    named = {plane.sop_uid: plane.series_uid for plane in identity.planes}
    if not named:
        return
    series = Dataset()
    series.SeriesInstanceUID = next(iter(named.values()))
    series.ReferencedInstanceSequence = [_instance(identity, uid) for uid in named]
    pm.ReferencedSeriesSequence = [series]


def _derivation(identity: Identity, references: Sequence[Reference]) -> Dataset:
    item = Dataset()
    item.DerivationCodeSequence = [code_item(PIXEL_SUBTRACTION)]  # image less what was expected
    item.SourceImageSequence = []
    for reference in references:
        source = _instance(identity, reference.sop_uid)
        if reference.frame is not None:
            source.ReferencedFrameNumber = reference.frame
        source.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE)]
        source.SpatialLocationsPreserved = "YES" if len(references) == 1 else "NO"
        item.SourceImageSequence.append(source)
    return item


def _instance(identity: Identity, sop_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = identity.sop_class, sop_uid
    return item
