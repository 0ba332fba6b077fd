"""DICOM files as planes: which are volume images, where each plane lies, what tells volumes of one series apart."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgen.errors import UnreadableError
from medgen.read.headers import Header, PixelCoding, Plane, Vector, open_header, pixel_coding

_CLASSES = "1.2.840.10008.5.1.4.1.1."
# Classic, enhanced and legacy-converted images of CT, MR and PET (DICOM PS3.4 B.5).
_VOLUME_CLASSES = {_CLASSES + tail for tail in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130")}
_SECONDARY_CAPTURE = _CLASSES + "7"
# Images of an eye, with the modality that each class has.
_EYE_CLASSES = {_CLASSES + "77.1.5.4": "OPT", _CLASSES + "77.1.5.1": "OP", _CLASSES + "77.1.5.2": "OP"}
# How the code of an optical coherence tomography scanner is called, in DICOM CID 4210 and in SNOMED CT.
_OCT_SCANNERS = {"A-00FBE", "392012008"}
_IMAGE_TYPE_RULES = {
    "LOCALIZER": "localizer",
    "SCREEN SAVE": "screen save",
    "PROJECTION IMAGE": "projection, not a volume",
    "MIP": "projection, not a volume",
    "MOSAIC": "mosaic: several slices tiled into one picture",
}
# Siemens and GE mark most localizers only in words.
_LOCALIZER_WORDS = re.compile(
    r"(?<![a-z])(loc|localiser|localizer|3.?pl(ane)?.?loc|scout|aa\w*scout\w*|topogram|surview|survey|scanogram)(?![a-z])"
)


def exclusion(header: Header) -> str:
    """Returns the rule that leaves a file out, such as `"localizer"`; an empty string when it is a volume image."""
    sop_class = header.text("SOPClassUID")
    if f"{sop_class}.".startswith(f"{_SECONDARY_CAPTURE}."):
        return "secondary capture"
    if sop_class not in _VOLUME_CLASSES:
        return f"modality {header.text('Modality') or 'unknown'}: not a CT, MR or PET volume image"
    if header.integer("SamplesPerPixel", 1) > 1:
        return "colour image"
    for value in (part.upper() for part in header.texts("ImageType")):
        if value in _IMAGE_TYPE_RULES:
            return _IMAGE_TYPE_RULES[value]
    words = f"{header.text('SeriesDescription')} {header.text('ProtocolName')}".lower().replace("_", " ")
    return "localizer (by its description)" if _LOCALIZER_WORDS.search(words) else ""


def eye_exclusion(header: Header) -> str:
    """Returns the rule that leaves out an image of an eye that is no B-scan; an empty string when it may be one.

    Photographs of the fundus have the classes of B-scans: only their colour, or the device, tells them.
    """
    if header.integer("SamplesPerPixel", 1) > 1:
        return "colour image, no B-scan"
    devices = {item.text("CodeValue") for item in header.items("AcquisitionDeviceTypeCodeSequence")} - {""}
    return "ophthalmic photograph, not by an OCT scanner" if devices and not devices & _OCT_SCANNERS else ""


def describe(header: Header) -> str:
    """Returns what an image is in a few words: the series' description, the eye, the sequence and its timing.

    A description in which someone typed a part of the patient's name, ID or birth date is left out.
    """
    words = header.text("SeriesDescription") or header.text("ProtocolName")
    identity = f"{header.text('PatientName')} {header.text('PatientID')} {header.text('PatientBirthDate')}".lower()
    if any(len(part) > 1 and part in words.lower() for part in re.split(r"[\s^=_,.-]+", identity)):
        words = ""
    timing = [
        f"{name} {value:g} ms"
        for name, key in (("TR", "RepetitionTime"), ("TE", "EchoTime"), ("TI", "InversionTime"))
        if (value := header.number(key))
    ]
    side = {"R": "right eye", "L": "left eye"}.get(header.text("ImageLaterality"), "")
    return ", ".join(part for part in (words, side, " ".join(header.texts("ScanningSequence")), *timing) if part)


def read_planes(file: Path, *, eyes: bool = False) -> list[Plane]:
    """Returns the planes in a DICOM file: one if classic, one per frame if multi-frame, none if it holds no image.

    Args:
        file: the file.
        eyes: take images of eyes (their modality is then OPT or OP, as their class says), which need not say where
            they lie; without it they are left out by rule, as whatever else is no volume.

    Raises:
        UnreadableError: the file is empty, or no DICOM, or a multi-frame file without the positions of its frames.
    """
    header, syntax, offset = open_header(file)
    if not header.text("SOPClassUID") and not header.text("SeriesInstanceUID"):
        raise UnreadableError(f"{file.name}: expected a DICOM image, got a file without SOP class and series")
    if "Rows" not in header:
        return []
    coding = pixel_coding(header, syntax, offset)
    modality = _EYE_CLASSES.get(header.text("SOPClassUID"), "") if eyes else ""
    planes = _planes(file, header, coding, eye=bool(modality))
    return [replace(plane, modality=modality) for plane in planes] if modality else planes


def _planes(file: Path, header: Header, coding: PixelCoding, *, eye: bool) -> list[Plane]:
    excluded = eye_exclusion(header) if eye else exclusion(header)
    frames = header.items("PerFrameFunctionalGroupsSequence")
    if frames and not excluded:
        shared = next(iter(header.items("SharedFunctionalGroupsSequence")), None)
        return [_frame(file, index, header, coding, shared, frame) for index, frame in enumerate(frames)]
    if eye and not excluded:
        return [_plane(file, frame, header, coding, "") for frame in range(coding.frames)]
    if coding.frames > 1 and not excluded:
        excluded = f"{coding.frames} frames without positions (no functional groups)"
    return [_plane(file, 0, header, coding, excluded)]


def _plane(file: Path, frame: int, header: Header, coding: PixelCoding, excluded: str) -> Plane:
    """Builds the plane of a classic file, or of a frame about which nothing is said of its own."""
    echo = header.text("EchoTime") or header.text("EchoNumbers")
    time = header.text("TemporalPositionIdentifier") or header.text("TriggerTime")
    return Plane(
        file=file,
        frame=frame,
        **_file_facts(header),
        excluded=excluded,
        position=header.vector("ImagePositionPatient", 3),
        orientation=header.vector("ImageOrientationPatient", 6),
        pixel_spacing=_positive(header.vector("PixelSpacing", 2)),
        thickness_mm=header.number("SliceThickness"),
        distance_mm=header.number("SpacingBetweenSlices"),
        instance=header.integer("InstanceNumber"),
        labels=(
            ("echo", echo),
            ("image-type", "-".join(header.texts("ImageType"))),
            ("time", time),
            ("b-value", header.text("DiffusionBValue")),
            ("flip-angle", header.text("FlipAngle")),
            ("acquisition", header.text("AcquisitionNumber")),
        ),
        slope=_slope(header.number("RescaleSlope")),
        intercept=header.number("RescaleIntercept") or 0.0,
        coding=coding,
    )


def _file_facts(header: Header) -> dict[str, Any]:
    """What a plane takes from the file as a whole, be it classic or multi-frame."""
    return {
        "sop_uid": header.text("SOPInstanceUID"),
        "study_uid": header.text("StudyInstanceUID"),
        "series_uid": header.text("SeriesInstanceUID"),
        "frame_of_reference": header.text("FrameOfReferenceUID"),
        "modality": header.text("Modality"),
        "description": describe(header),
        "rows": header.integer("Rows"),
        "columns": header.integer("Columns"),
        "by_medgen": any(version.startswith("medgen ") for version in header.texts("SoftwareVersions")),
    }


def _slope(value: float | None) -> float:
    return 1.0 if value is None else value


def _positive(spacing: Vector | None) -> Vector | None:
    return spacing if spacing and min(spacing) > 0 else None


def _frame(file: Path, index: int, header: Header, coding: PixelCoding, shared: Header | None, own: Header) -> Plane:
    """Builds the plane of one frame; what its own functional groups lack is in the shared ones (PS3.3 C.7.6.16)."""

    def group(sequence: str) -> Header:
        found = own.items(sequence) or (shared.items(sequence) if shared else [])
        return found[0] if found else header

    content, measures, values = (
        group("FrameContentSequence"),
        group("PixelMeasuresSequence"),
        group("PixelValueTransformationSequence"),
    )
    kinds = group("MRImageFrameTypeSequence")
    if kinds is header:
        kinds = group("CTImageFrameTypeSequence")
    return Plane(
        file=file,
        frame=index,
        **_file_facts(header),
        excluded="",
        position=group("PlanePositionSequence").vector("ImagePositionPatient", 3),
        orientation=group("PlaneOrientationSequence").vector("ImageOrientationPatient", 6),
        pixel_spacing=_positive(measures.vector("PixelSpacing", 2)),
        thickness_mm=measures.number("SliceThickness"),
        distance_mm=measures.number("SpacingBetweenSlices"),
        instance=index + 1,
        labels=(
            ("stack", content.text("StackID")),
            ("echo", _number_text(group("MREchoSequence").numbers("EffectiveEchoTime"))),
            ("image-type", "-".join((*kinds.texts("FrameType"), kinds.text("ComplexImageComponent")))),
            ("time", _number_text(content.numbers("TemporalPositionIndex"))),
            ("b-value", _number_text(group("MRDiffusionSequence").numbers("DiffusionBValue"))),
            ("acquisition", _number_text(content.numbers("FrameAcquisitionNumber"))),
        ),
        slope=_slope(values.number("RescaleSlope")),
        intercept=values.number("RescaleIntercept") or 0.0,
        coding=coding,
    )


def _number_text(values: Vector) -> str:
    return f"{values[0]:g}" if values else ""
