"""One DICOM file's header, read without its pixels and cut into planes.

A plane is one two-dimensional image: a classic file holds one, an enhanced multi-frame file one per frame. Values are
taken from the raw bytes: pydicom's own conversion warns about every decimal string that a scanner wrote too long.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from medgen.errors import UnreadableError

Vector = tuple[float, ...]

_PREAMBLE = 128
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_READ_ERRORS = (
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    NotImplementedError,
    struct.error,
)
_BINARY_VR = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_KEYWORDS = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality ImageType Rows
    Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit
    PixelRepresentation RescaleSlope RescaleIntercept ModalityLUTSequence PixelSpacing ImagePositionPatient
    ImageOrientationPatient SliceThickness SpacingBetweenSlices InstanceNumber AcquisitionNumber
    TemporalPositionIdentifier TriggerTime EchoNumbers EchoTime RepetitionTime InversionTime FlipAngle
    DiffusionBValue SeriesDescription ProtocolName ScanningSequence BodyPartExamined PatientName PatientID
    PatientBirthDate SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence ImageLaterality
    AcquisitionDeviceTypeCodeSequence SoftwareVersions
""".split()  # noqa: SIM905 - a table of names reads better than one a line
_TAGS = {keyword: tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None}


@dataclass(frozen=True, slots=True)
class PixelCoding:
    """How a file stores its pixels.

    Attributes:
        transfer_syntax: UID.
        offset: first byte of the pixels when they lie uncompressed and little-endian in the file, else -1.
        bits_allocated: per pixel, as `bits_stored` and `high_bit`.
        signed: whether stored values are two's complement.
        frames: images in the file.
        problem: why the stored values cannot be turned into real ones, else "".
    """

    transfer_syntax: str
    offset: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    frames: int
    problem: str


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """One two-dimensional image as its header describes it; positions are LPS+ millimetres, as DICOM states them.

    Attributes:
        file: where it is.
        frame: index in that file, from 0.
        sop_uid: identifies the file; with `frame` it identifies the plane.
        study_uid: identifies the examination.
        series_uid: identifies the series.
        frame_of_reference: planes are comparable in space only within one.
        modality: `"MR"`, `"CT"` ...
        description: what it is, never who.
        excluded: the rule that leaves it out, else "".
        rows: pixels down; `columns` across.
        columns: pixels across.
        position: centre of the first pixel, or None when the header lacks it.
        orientation: direction along a row (3), then down a column (3), or None.
        pixel_spacing: between rows, then between columns, or None.
        thickness_mm: SliceThickness, or None.
        distance_mm: SpacingBetweenSlices, or None.
        instance: InstanceNumber, 0 when missing; never used to order slices in space.
        labels: what tells apart several volumes in one series, in the order in which it is tried.
        slope: stored values times `slope` plus `intercept` are the real ones.
        intercept: see `slope`.
        coding: how the file stores its pixels.
        by_medgen: whether medgen derived it.
    """

    file: Path
    frame: int
    sop_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference: str
    modality: str
    description: str
    excluded: str
    rows: int
    columns: int
    position: Vector | None
    orientation: Vector | None
    pixel_spacing: Vector | None
    thickness_mm: float | None
    distance_mm: float | None
    instance: int
    labels: tuple[tuple[str, str], ...]
    slope: float
    intercept: float
    coding: PixelCoding
    by_medgen: bool = False


class Header:
    """A dataset whose values are read from the raw bytes; a missing or malformed value is empty, never a guess."""

    def __init__(self, dataset: pydicom.Dataset) -> None:
        self._dataset = dataset

    def _element(self, keyword: str) -> RawDataElement | None:
        tag = _TAGS.get(keyword) or tag_for_keyword(keyword)
        if tag is None or tag not in self._dataset:
            return None
        element = self._dataset.get_item(tag)
        return element if isinstance(element, RawDataElement) else None

    def text(self, keyword: str) -> str:
        """Returns the value as text without padding."""
        element = self._element(keyword)
        value = (element.value if element else None) or b""
        try:
            decoded = value.decode("utf-8")
        except UnicodeDecodeError:
            decoded = value.decode("latin-1")
        return decoded.strip(" \0\t\r\n")

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Returns the parts of a multi-valued text."""
        text = self.text(keyword)
        return tuple(part.strip() for part in text.split("\\")) if text else ()

    def numbers(self, keyword: str) -> Vector:
        """Returns the values as floats, whether they are stored as text or binary."""
        element = self._element(keyword)
        if element is None or not element.value:
            return ()
        code = _BINARY_VR.get(element.VR or dictionary_VR(element.tag))
        try:
            if code is None:
                return tuple(float(part) for part in self.texts(keyword))
            order = "<" if element.is_little_endian else ">"
            return tuple(float(v[0]) for v in struct.iter_unpack(order + code, element.value))
        except (ValueError, struct.error):
            return ()

    def number(self, keyword: str) -> float | None:
        """Returns the first value, or None."""
        values = self.numbers(keyword)
        return values[0] if values else None

    def integer(self, keyword: str, default: int = 0) -> int:
        """Returns the first value as an integer, or `default`."""
        value = self.number(keyword)
        return default if value is None else int(value)

    def vector(self, keyword: str, length: int) -> Vector | None:
        """Returns exactly `length` finite numbers, or None."""
        values = self.numbers(keyword)
        return values if len(values) == length and all(abs(v) < float("inf") for v in values) else None

    def items(self, keyword: str) -> list["Header"]:
        """Returns the items of a sequence."""
        if keyword not in self._dataset:
            return []
        return [Header(item) for item in self._dataset[keyword].value or []]

    def __contains__(self, keyword: str) -> bool:
        return keyword in self._dataset


def looks_like_dicom(file: Path) -> bool:
    """Says whether the first bytes are those of a DICOM file, with its preamble or (old files) without.

    Raises:
        OSError: the file cannot be opened.
    """
    with file.open("rb") as stream:
        return _begins_like_dicom(stream.read(_PREAMBLE + 4))


def _begins_like_dicom(start: bytes) -> bool:
    if start[_PREAMBLE:] == b"DICM":
        return True
    # Without a preamble the file begins with an element of group 0002 or 0008 whose number is small.
    return len(start) > 12 and start[:2] in (b"\x02\x00", b"\x08\x00") and start[3] == 0 and start[2] <= 0x18


def open_header(file: Path) -> tuple[Header, str, int]:
    """Reads the part of a header that medgen uses.

    Returns:
        the header, the transfer syntax, and the byte where plain little-endian pixels begin (-1 if otherwise stored).

    Raises:
        UnreadableError: the file is empty or no DICOM.
    """
    try:
        with file.open("rb") as stream:
            dicom = _begins_like_dicom(stream.read(_PREAMBLE + 4))
            stream.seek(0)
            # Not forced on a file of another kind: pydicom would find elements in any bytes.
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=dicom, specific_tags=list(_TAGS.values()))
            implicit, little = dataset.original_encoding
            stated = str(dataset.file_meta.get("TransferSyntaxUID", "")) if "file_meta" in dataset.__dict__ else ""
            syntax = stated or (_IMPLICIT_LITTLE if implicit else _EXPLICIT_LITTLE if little else _EXPLICIT_BIG)
            return Header(dataset), syntax, _pixel_offset(stream, syntax, implicit=bool(implicit))
    except _READ_ERRORS as error:
        size = file.stat().st_size if file.exists() else 0
        found = f"{size} bytes of something else" if size else "an empty or missing file"
        raise UnreadableError(f"{file.name}: expected a DICOM file, got {found} ({type(error).__name__})") from error


def _pixel_offset(stream: BinaryIO, syntax: str, *, implicit: bool) -> int:
    """Returns where the pixels begin when the stream stands before an uncompressed PixelData element, else -1."""
    if syntax not in (_EXPLICIT_LITTLE, _IMPLICIT_LITTLE):
        return -1
    head = stream.read(12)
    if head[:4] != _PIXEL_DATA:
        return -1
    width = 8 if implicit else 12
    length = struct.unpack("<I", head[width - 4 : width])[0]
    return stream.tell() - len(head) + width if length != _UNDEFINED_LENGTH else -1


def pixel_coding(header: Header, syntax: str, offset: int) -> PixelCoding:
    """Collects how the pixels are stored."""
    allocated = header.integer("BitsAllocated", 16)
    stored = header.integer("BitsStored", allocated)
    return PixelCoding(
        transfer_syntax=syntax,
        offset=offset,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=header.integer("HighBit", stored - 1),
        signed=header.integer("PixelRepresentation") == 1,
        frames=max(1, header.integer("NumberOfFrames", 1)),
        problem=_value_problem(header, allocated),
    )


def _value_problem(header: Header, allocated: int) -> str:
    """Says why stored values cannot be turned into real ones, else an empty string."""
    photometric = header.text("PhotometricInterpretation")
    if photometric == "MONOCHROME1":
        # Whether the values too are inverted, or only their display, differs by maker; a guess could make a negative.
        return "expected MONOCHROME2, got MONOCHROME1 (low values shown white); convert the series first"
    if photometric != "MONOCHROME2":
        return f"expected MONOCHROME2, got {photometric or 'no photometric interpretation'}"
    if header.items("ModalityLUTSequence"):
        return "expected a linear rescale, got a modality look-up table"
    return "" if allocated in (8, 16, 32) else f"expected 8, 16 or 32 bits a pixel, got {allocated}"


def syntax_name(uid: str) -> str:
    """Returns the name of a transfer syntax, such as `"JPEG 2000 Image Compression (Lossless Only)"`."""
    return str(UID(uid).name)
