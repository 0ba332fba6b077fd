"""Whose image it is: patient, study and frame of reference of a derived DICOM series.

Values are copied as the bytes that the source holds: decoding and encoding them again would change a name in a wrongly
stated character set, and pydicom's warnings about a malformed value quote it.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

import pydicom
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag
from pydicom.uid import UID

from medgen.case import Case
from medgen.errors import OutputError
from medgen.read.headers import Plane
from medgen.read.ophthalmic import EYE_MODALITIES, bscans_of
from medgen.read.planes import read_planes
from medgen.read.stacks import build_stacks

# DICOM PS3.3: Patient (C.7.1.1), Clinical Trial Subject (C.7.1.3), General Study (C.7.2.1), Patient Study (C.7.2.2),
# Clinical Trial Study (C.7.2.3), Frame of Reference (C.7.4.1), and what General Series (C.7.3.1) says of the patient.
_PATIENT_AND_STUDY = """
    SpecificCharacterSet TimezoneOffsetFromUTC
    PatientName PatientID IssuerOfPatientID IssuerOfPatientIDQualifiersSequence TypeOfPatientID PatientBirthDate
    PatientBirthTime PatientSex OtherPatientIDs OtherPatientIDsSequence OtherPatientNames EthnicGroup PatientComments
    QualityControlSubject PatientSpeciesDescription PatientSpeciesCodeSequence PatientBreedDescription
    PatientBreedCodeSequence BreedRegistrationSequence ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName ClinicalTrialSiteID ClinicalTrialSiteName
    ClinicalTrialSubjectID ClinicalTrialSubjectReadingID ClinicalTrialTimePointID ClinicalTrialTimePointDescription
    ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialProtocolEthicsCommitteeApprovalNumber
    StudyInstanceUID StudyID StudyDate StudyTime StudyDescription AccessionNumber IssuerOfAccessionNumberSequence
    ReferringPhysicianName ReferringPhysicianIdentificationSequence PhysiciansOfRecord ProcedureCodeSequence
    ReferencedStudySequence ReasonForPerformedProcedureCodeSequence
    PatientAge PatientSize PatientWeight PatientBodyMassIndex AdmissionID Occupation AdditionalPatientHistory
    AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence PregnancyStatus PatientSexNeutered PatientState
    MedicalAlerts Allergies SmokingStatus LastMenstrualDate ServiceEpisodeID ServiceEpisodeDescription
    FrameOfReferenceUID PositionReferenceIndicator BodyPartExamined Laterality PatientPosition
""".split()  # noqa: SIM905  # so many words read better without quotes
# Once lossy, always lossy (PS3.3 C.7.6.1.1.5).
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
# What the source's equipment is called in ContributingEquipmentSequence.
_EQUIPMENT = (
    *("Manufacturer", "ManufacturerModelName", "InstitutionName", "InstitutionAddress", "StationName"),
    *("InstitutionalDepartmentName", "DeviceSerialNumber", "SoftwareVersions"),
)
# How a CT was acquired and reconstructed (PS3.3 C.8.2.1, C.7.6.4), as far as it is the same in all of its
# slices: tells the series of a study apart when all have been denoised.
_ACQUISITION = """
    KVP AcquisitionNumber AcquisitionDate ScanOptions FilterType ConvolutionKernel ExposureTime
    DataCollectionDiameter ReconstructionDiameter DistanceSourceToDetector DistanceSourceToPatient GantryDetectorTilt
    RotationDirection RevolutionTime SingleCollimationWidth TotalCollimationWidth SpiralPitchFactor
    ContrastBolusAgent ContrastBolusRoute WindowCenter WindowWidth
""".split()  # noqa: SIM905
_OTHER = ("SOPClassUID", "SeriesInstanceUID", "SeriesNumber")
# Which eye (PS3.3 C.8.17.5), at the top or for all frames.
_EYE = ("ImageLaterality", "AnatomicRegionSequence", "SharedFunctionalGroupsSequence")
# Type 2 in the modules above: there in every instance, if only empty.
_REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "PatientPosition"),
)
_TEXT = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
_NAMESPACE = uuid.UUID("6d656467-656e-5000-8000-000000000001")
# Added to the source's SeriesNumber, out of the way of the numbers that scanners give.
_DERIVED_SERIES = 1000


@dataclass(frozen=True, eq=False)
class Identity:
    """What a derived series has from its source.

    Attributes:
        patient_and_study: the elements that are carried over, to be put into every instance.
        equipment: what made the source; empty when that is not known.
        acquisition: how a CT was acquired and how it is shown, for a result that is still that CT.
        anatomy: of an eye, which one, as an item of FrameAnatomySequence (PS3.3 C.7.6.16.2.8); empty if not known.
        seed: text that stands for the source when UIDs are made.
        series_number: for the derived series.
        sop_class: of the source instances, "" when there are none.
        planes: the source images in order along their normal; none for a source that is not DICOM.
    """

    patient_and_study: Dataset
    equipment: Dataset
    seed: str
    series_number: int
    sop_class: str = ""
    planes: tuple[Plane, ...] = ()
    acquisition: Dataset = field(default_factory=Dataset)
    anatomy: Dataset = field(default_factory=Dataset)


def uid_of(*parts: str) -> UID:
    """Returns a UID that follows from its parts: a name-based UUID (PS3.5 B.2).

    Example:
        >>> uid_of("a", "b") == uid_of("a", "b") != uid_of("a", "c")
        True
    """
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}")


def identity_of(case: Case, input_sha256: str) -> Identity:
    """Collects what a derived series has from its input; for one that is not DICOM, a new study of nobody's.

    Args:
        case: the input.
        input_sha256: of its content; two results of the same input share the study that is made for it.

    Raises:
        OutputError: the source cannot be read any more.
    """
    if case.kind != "dicom":
        return _new_study(case, input_sha256)
    try:
        return _of_source(case)
    except OSError as error:
        raise OutputError(f"{case.name}: the source series can no longer be read: {error.strerror}") from error


def _of_source(case: Case) -> Identity:
    wanted = (*_PATIENT_AND_STUDY, *_LOSSY, *_EQUIPMENT, *_OTHER, *_ACQUISITION, *_EYE)
    source = pydicom.dcmread(case.files[0], stop_before_pixels=True, force=True, specific_tags=list(wanted))
    carried = _copied(source, _tags(_PATIENT_AND_STUDY))
    if _text(source, "LossyImageCompression") == "01":
        carried.update(_copied(source, _tags(_LOSSY)))
    series, number = _text(source, "SeriesInstanceUID") or case.name, _text(source, "SeriesNumber")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not _text(source, keyword):
            setattr(carried, keyword, uid_of(keyword, series))
    planes = _source_planes(case)
    anatomy = _anatomy(source) if case.modality in EYE_MODALITIES else Dataset()
    if case.modality in EYE_MODALITIES and planes[0].position is None:  # its grid is not of the source's space
        carried.FrameOfReferenceUID = uid_of("own frame of reference", series, planes[0].sop_uid)
    return Identity(
        anatomy=anatomy,
        patient_and_study=_completed(carried),
        equipment=_copied(source, _tags(_EQUIPMENT)),
        seed=f"{series} {planes[0].sop_uid} {planes[0].frame}",
        series_number=_DERIVED_SERIES + (int(number) if number.isdecimal() else 0),
        sop_class=_text(source, "SOPClassUID"),
        planes=planes,
        acquisition=_copied(source, _tags(_ACQUISITION)),
    )


def _anatomy(source: Dataset) -> Dataset:
    """Which eye it is, as far as that is said."""
    shared = next(iter(source.get("SharedFunctionalGroupsSequence") or []), Dataset())
    frames = next(iter(shared.get("FrameAnatomySequence") or []), Dataset())
    side = _text(source, "ImageLaterality") or _text(frames, "FrameLaterality") or _text(source, "Laterality")
    if side not in {"L", "R", "B"}:
        return Dataset()
    anatomy = Dataset()
    anatomy.FrameLaterality = side
    region = _tags(["AnatomicRegionSequence"])
    anatomy.update(_copied(source if "AnatomicRegionSequence" in source else frames, region))
    if "AnatomicRegionSequence" not in anatomy:
        eye = Dataset()
        eye.CodeValue, eye.CodingSchemeDesignator, eye.CodeMeaning = "81745001", "SCT", "Eye"
        anatomy.AnatomicRegionSequence = [eye]
    return anatomy


def _new_study(case: Case, input_sha256: str) -> Identity:
    """A study of its own for an input without one: nobody's name, and an ID that follows from the content."""
    seed = input_sha256 or case.name
    new = Dataset()
    new.SpecificCharacterSet = "ISO_IR 192"
    new.PatientID = f"ANON-{uid_of('patient', seed)[-12:]}"
    new.StudyID = "1"
    new.StudyInstanceUID = uid_of("study", seed)
    new.FrameOfReferenceUID = uid_of("frame of reference", seed)
    return Identity(_completed(new), Dataset(), seed, series_number=1)


def _completed(dataset: Dataset) -> Dataset:
    for keyword in _REQUIRED:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    if "BodyPartExamined" not in dataset and "Laterality" not in dataset:
        dataset.Laterality = ""  # type 2C: needed where no body part says that there is only one of it
    return dataset


def _source_planes(case: Case) -> tuple[Plane, ...]:
    """The planes of the case's volume, in order along their normal; of an eye, in the order of its B-scans."""
    if case.modality in EYE_MODALITIES:
        return bscans_of(read_planes(case.files[0], eyes=True)).planes
    stacks = build_stacks(plane for file in case.files for plane in read_planes(file))
    usable = [s for s in stacks if not s.excluded and (not case.volume or s.key == case.volume)]
    if not usable:
        raise OutputError(f"{case.name}: the source series has changed since it was read; run again")
    return usable[0].planes


def _tags(keywords: Iterable[str]) -> list[BaseTag]:
    return [BaseTag(tag) for tag in map(tag_for_keyword, keywords) if tag is not None]


def _copied(source: Dataset, tags: Iterable[BaseTag]) -> Dataset:
    """Copies elements without decoding their text, sequences item by item."""
    target = Dataset()
    for tag in tags:
        if tag not in source:
            continue
        element = source.get_item(tag)
        vr = element.VR or dictionary_VR(tag)
        if isinstance(element, RawDataElement) and vr in _TEXT:
            value = element.value or b""
            target[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
        elif vr == "SQ":
            items = [_copied(item, list(item.keys())) for item in source[tag].value or []]
            target[tag] = DataElement(tag, "SQ", items)
        else:
            target[tag] = source[tag]
    return target


def _text(source: Dataset, keyword: str) -> str:
    """An identifier or number as text, read from the raw bytes; empty where it is missing."""
    element = source.get_item(keyword) if keyword in source else None
    value = getattr(element, "value", None) or b""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.strip(" \0").split("\\")[0]
