"""Why a case failed, in one line that may be shown to anyone: no path, no name, no number that could be an ID."""

import errno
import re
from collections.abc import Iterator

from medgen.errors import MedgenError

_LONGEST_REASON = 300
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
# Messages of other libraries may quote header values and paths. What is cut: quoted text, paths, DICOM person names
# (`Family^Given`), and numbers long enough to be an ID or a date of birth.
_PRIVATE = re.compile(
    r"""'[^']*' | "[^"]*" | `[^`]*` | <[^>]*>
    | \S*[/\\]\S* | \S*\^\S* | \S*\d{6,}\S* | \S*\d{2,4}[-.]\d{2}[-.]\d{2,4}\S*""",
    re.VERBOSE,
)


def reason_of(error: BaseException) -> str:
    """Returns why a case failed, in one line.

    A `MedgenError` anywhere in the chain speaks for itself (MONAI wraps what a transform raises). Of any other error
    the class of the root cause is named, and its message without what could identify a patient; the whole of it belongs
    into a log that only its owner reads.

    Example:
        >>> reason_of(ValueError("cannot read '/data/Doe_Jane.nii': bad magic"))
        'ValueError: cannot read …: bad magic'
    """
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, MedgenError):
            return _one_line(str(cause))
    root = chain[-1]
    message = _one_line(_PRIVATE.sub("…", str(root)))
    return f"{type(root).__name__}: {message}" if message else type(root).__name__


def is_disk_full(error: BaseException) -> bool:
    """Says whether nothing more can be written: the disk or the quota is full, or the disk became read-only."""
    return any(isinstance(cause, OSError) and cause.errno in _DISK_FULL for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 1] + "…"
