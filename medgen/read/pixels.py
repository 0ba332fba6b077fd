"""Stored values of a plane become real ones: decoded, masked to their bits, sign-extended, rescaled plane by plane."""

import hashlib

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels.utils import pixel_array

from medgen.errors import UnreadableError
from medgen.read.headers import PixelCoding, Plane, syntax_name

Image = npt.NDArray[np.float32]

_WHOLE_FILE = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
# Which package decodes what, for the message when it is not installed.
_CODECS = {
    "1.2.840.10008.1.2.4.50": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.51": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.57": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.70": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.80": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.81": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.90": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.5": "pylibjpeg-rle",
}


def pixels_sha256(plane: Plane) -> str:
    """Returns a hash of the stored values, for telling a copy from another image; unreadable pixels equal no others."""
    try:
        values = np.ascontiguousarray(stored_values(plane))
    except (UnreadableError, OSError):
        return f"unreadable {plane.file} {plane.frame}"
    return hashlib.sha256(values.tobytes()).hexdigest()


def fill_real_values(plane: Plane, out: Image) -> None:
    """Writes the real values of a plane into `out`, shape `(rows, columns)`.

    Raises:
        UnreadableError: the pixels are truncated, or their codec is not installed.
    """
    np.multiply(stored_values(plane), np.float32(plane.slope), out=out, casting="unsafe")
    if plane.intercept:
        out += np.float32(plane.intercept)


def stored_values(plane: Plane) -> npt.NDArray[np.integer]:
    """Returns the stored values of a plane as integers with their sign, shape `(rows, columns)`.

    Raises:
        UnreadableError: the pixels are truncated, or their codec is not installed.
    """
    values = _native_values(plane) if plane.coding.offset >= 0 else _decoded_values(plane)
    return _significant_bits(values, plane.coding, native=plane.coding.offset >= 0)


def _native_values(plane: Plane) -> npt.NDArray[np.integer]:
    """Reads uncompressed little-endian pixels straight from the file."""
    coding = plane.coding
    dtype = np.dtype(f"<{'i' if coding.signed else 'u'}{coding.bits_allocated // 8}")
    count = plane.rows * plane.columns
    values = np.fromfile(plane.file, dtype, count, offset=coding.offset + plane.frame * count * dtype.itemsize)
    if values.size < count:
        raise UnreadableError(f"{plane.file.name}: expected {count} pixels, got {values.size}: the file is truncated")
    return values.reshape(plane.rows, plane.columns)


def _decoded_values(plane: Plane) -> npt.NDArray[np.integer]:
    """Decodes compressed (or big-endian, or deflated) pixels with pydicom's decoders."""
    syntax = plane.coding.transfer_syntax
    try:
        index = plane.frame if plane.coding.frames > 1 else None
        # From the path one frame at a time is read, but pydicom cannot do that in a deflated file.
        source = pydicom.dcmread(plane.file) if syntax in _WHOLE_FILE else plane.file
        values = pixel_array(source, index=index, raw=True)
    except (RuntimeError, NotImplementedError, AttributeError, ValueError, KeyError, OSError) as error:
        package = _CODECS.get(syntax)
        hint = f"; it needs `pip install {package}`" if package and isinstance(error, RuntimeError) else ""
        raise UnreadableError(
            f"{plane.file.name}: cannot decode {syntax_name(syntax)} ({type(error).__name__}){hint}"
        ) from error
    if values.shape != (plane.rows, plane.columns):
        raise UnreadableError(
            f"{plane.file.name}: expected {plane.columns}x{plane.rows} pixels, got shape {values.shape}"
        )
    return np.asarray(values)


def _significant_bits(values: npt.NDArray[np.integer], coding: PixelCoding, *, native: bool) -> npt.NDArray[np.integer]:
    """Drops bits that are no part of the value (old overlays) and extends the sign of, say, 12 bits in 16."""
    bits = values.dtype.itemsize * 8
    if coding.bits_stored >= bits:
        return values
    top = bits - 1 - coding.high_bit if native else bits - coding.bits_stored
    return (values << top) >> (bits - coding.bits_stored)
