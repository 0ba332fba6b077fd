"""Everything medgen raises on purpose.

MedgenError
├── InputError              one case cannot be used; the run goes on with the next
│   ├── UnreadableError     the file is empty, truncated, of another format, or its codec is missing
│   ├── GeometryError       the slices do not form the regular grid that they claim
│   ├── IntensityError      NaN, infinite or constant voxels
│   └── TooLargeError       the volume would not fit in memory
├── OutputError             a result cannot be written (disk full, no permission, would not fit the type)
├── NoInputError            nothing to work on was found
├── ManifestError           a data manifest is not valid
├── FetchError              a file of a data set cannot be had, or is not the one that its manifest states
├── BundleError             a bundle is incomplete, or its weights are not the ones it names
│   └── UntrustedError      a bundle from elsewhere is code, and nobody has said that it may run
├── DeviceError             the device asked for is not there, or too small for the smallest region
└── NotExactError           the way without torch cannot do this case exactly; it is done in the usual way

A message says what was expected, what was found, where, and what to try, in two lines at most. It never holds a
patient's name, ID or birth date, and names files relative to the input.
"""

from collections.abc import Sequence


class MedgenError(Exception):
    """Base of all errors that medgen raises on purpose."""


class InputError(MedgenError):
    """One case cannot be used; `run` adds the case and the stage."""


class UnreadableError(InputError):
    """The file is empty, truncated, of another format, or compressed with a codec that is not installed."""


class GeometryError(InputError):
    """The slices do not form the regular grid that they claim."""


class IntensityError(InputError):
    """The voxels are NaN, infinite or all the same."""


class TooLargeError(InputError):
    """The volume would not fit in memory."""


class OutputError(MedgenError):
    """A result cannot be written."""


class NoInputError(MedgenError):
    """Nothing to work on was found."""


class ManifestError(MedgenError):
    """A data manifest is not valid."""


class FetchError(MedgenError):
    """A file of a data set cannot be had, or is not the one that its manifest states."""


class BundleError(MedgenError):
    """A bundle is incomplete, or its weights are not the ones that it names."""


class UntrustedError(BundleError):
    """A bundle from elsewhere is code, and nobody has said that it may run.

    Attributes:
        items: what it would import and evaluate, as rows of (kind, what, where).
    """

    def __init__(self, message: str, items: Sequence[tuple[str, str, str]] = ()) -> None:
        super().__init__(message)
        self.items = tuple(items)


class DeviceError(MedgenError):
    """The device asked for is not there, too small for the smallest region, or wrong about what was asked of it."""


class NotExactError(MedgenError):
    """The way without torch cannot do this case exactly; the case is done in the usual way, and nobody sees this."""


def root_cause(error: BaseException) -> BaseException:
    """Returns the error at the end of a chain of `raise ... from ...`: what went wrong, below those who passed it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
