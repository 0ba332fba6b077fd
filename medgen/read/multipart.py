"""Bodies of several parts, as DICOMweb moves instances: taken apart as they arrive, to the last byte, and put together.

Source: RFC 2046, section 5.1; DICOM PS3.18, section 8.6.1.2.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from email.message import Message

from medgen.read.patience import AnswerError, CutShortError

_END_OF_HEADERS = b"\r\n\r\n"


def boundary_of(content_type: str) -> bytes:
    """Returns what stands between the parts.

    Raises:
        AnswerError: the answer does not consist of parts.
    """
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    if message.get_content_maintype() != "multipart" or not boundary:
        raise AnswerError("expected instances as multipart/related, got another kind of answer")
    return boundary.encode("latin-1")


def parts_of(chunks: Iterable[bytes], boundary: bytes) -> Iterator[bytes]:
    r"""Yields the contents of the parts.

    Args:
        chunks: the body, in pieces of any size.
        boundary: of `boundary_of`.

    Raises:
        CutShortError: the body ends before its end; not every server says how long it will be.

    Example:
        >>> list(parts_of([b"--b\r\nA: 1\r\n\r\none\r\n--b", b"\r\n\r\ntwo\r\n--b--"], b"b"))
        [b'one', b'two']
    """
    delimiter = b"\r\n--" + boundary
    held, looked, begun = bytearray(b"\r\n"), 0, False
    for chunk in chunks:
        held += chunk
        while (at := held.find(delimiter, looked)) >= 0:
            if begun:
                yield bytes(held[:at]).partition(_END_OF_HEADERS)[2]
            del held[: at + len(delimiter)]
            looked, begun = 0, True
        looked = max(0, len(held) - len(delimiter) + 1)
    if not begun or not held.startswith(b"--"):
        raise CutShortError("its answer was cut short")


def body_of(parts: Sequence[bytes]) -> tuple[bytes, str]:
    """Returns DICOM instances as one body, and its content type."""
    boundary = secrets.token_hex(16)  # 128 random bits that no instance holds
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(piece for part in parts for piece in (head, part, b"\r\n"))
    return body + f"--{boundary}--\r\n".encode(), f'multipart/related; type="application/dicom"; boundary={boundary}'
