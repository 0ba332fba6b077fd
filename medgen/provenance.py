"""Who made this file: bundle, weights, versions, input; written into every sidecar and derived DICOM instance."""

import hashlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import medgen

_REPORTED_PACKAGES = ("monai", "torch", "numpy", "nibabel", "SimpleITK", "pydicom")


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """Returns one SHA-256 for several files: the hash of their hashes, independent of their order and names."""
    digests = sorted(file_sha256(path) for path in paths)
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Returns the versions of medgen, Python and the packages that touch voxels; an absent one is left out."""
    found = {"medgen": medgen.__version__, "python": platform.python_version()}
    for name in _REPORTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Provenance:
    """Everything needed to make the same file again, and nothing about the patient.

    Attributes:
        bundle: name of the bundle.
        bundle_version: its version, from `metadata.json`.
        weights_sha256: of the weights that ran.
        input_sha256: of the input's content.
        settings: whatever changes the output: precision, window, overlap, gridding.
        versions: of the packages that touch voxels.
    """

    bundle: str
    bundle_version: str
    weights_sha256: str
    input_sha256: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=package_versions)

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain JSON types."""
        return asdict(self)
