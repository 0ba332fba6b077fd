"""The bundles that are installed, found and summed up without torch or MONAI, so that listing them is quick."""

import difflib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import medgen
from medgen.errors import BundleError
from medgen.run.metadata import Metadata, read_metadata, weights_state

BUNDLES_VARIABLE = "MEDGEN_BUNDLES"


@dataclass(frozen=True)
class BundleFolder:
    """Where a bundle lies, and whether it came with medgen.

    Attributes:
        name: of the bundle: its folder's.
        folder: absolute, links resolved.
        own: it lies in one of the catalog's folders, and so needs no further trust.
    """

    name: str
    folder: Path
    own: bool


@dataclass(frozen=True)
class BundleSummary:
    """One line of `medgen list`.

    Attributes:
        name: of the bundle.
        version: from its metadata.
        task: what it does.
        modality: of the result, after that of the input where the two differ: `"MR to CT"`.
        input: contrast or format of the input.
        output: suffix of the result, such as `"T2w"`.
        weights: `"verified"`, `"wrong"`, `"missing"` or `"unlisted"`, by SHA-256.
        headline: one number with its test set, "" where none is declared.
    """

    name: str
    version: str
    task: str
    modality: str
    input: str
    output: str
    weights: str
    headline: str

    def to_json(self) -> dict[str, Any]:
        """Returns the summary as plain JSON types."""
        return asdict(self)


def catalog_folders() -> list[Path]:
    """Returns the folders whose bundles count as installed: those of $MEDGEN_BUNDLES, then the ones medgen came with.

    A bundle below one of them runs without being asked about, so the variable is a statement of trust.
    """
    named = [Path(part) for part in os.environ.get(BUNDLES_VARIABLE, "").split(os.pathsep) if part]
    package = Path(medgen.__file__).resolve().parent
    shipped = [package / "bundles"]
    # Only in a checkout: beside an installed package lie other people's folders.
    if (package.parent / "pyproject.toml").is_file():
        shipped.append(package.parent / "bundles")
    return [folder.resolve() for folder in (*named, *shipped) if folder.is_dir()]


def list_bundles() -> list[BundleSummary]:
    """Sums up every installed bundle, by name.

    Raises:
        BundleError: the metadata of one cannot be read.
    """
    return [summarise(entry) for entry in sorted(_installed(), key=lambda entry: entry.name)]


def summarise(entry: BundleFolder) -> BundleSummary:
    """Returns the line of `medgen list` for one bundle.

    Raises:
        BundleError: its metadata cannot be read.
    """
    metadata = read_metadata(entry.folder)
    modalities = dict.fromkeys(filter(None, (metadata.modality_in, metadata.modality_out)))
    return BundleSummary(
        name=entry.name,
        version=metadata.version,
        task=metadata.task,
        modality=" to ".join(modalities),
        input=str(metadata.fields.get("input_contrast") or metadata.input.get("format", "")),
        output=metadata.output_kind().suffix,
        weights=weights_state(entry.folder, metadata.weights_sha256()),
        headline=_headline(metadata),
    )


def find_bundle(name_or_path: str | Path) -> BundleFolder:
    """Finds a bundle by the name of an installed one, else by the path of its folder.

    Raises:
        BundleError: there is none; near misses are named.
    """
    by_name = {entry.name: entry for entry in reversed(list(_installed()))}
    if str(name_or_path) in by_name:
        return by_name[str(name_or_path)]
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        own = any(folder.parent == shelf for shelf in catalog_folders())
        return BundleFolder(folder.name, folder, own)
    near = difflib.get_close_matches(str(name_or_path), by_name, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}" if near else f"installed: {', '.join(sorted(by_name)) or 'none'}"
    raise BundleError(f"expected the name of an installed bundle or a bundle's folder, got {name_or_path}; {hint}")


def _installed() -> Iterator[BundleFolder]:
    """Yields every folder with metadata; a name on an earlier shelf hides the same on a later one."""
    seen = set()
    for shelf in catalog_folders():
        for metadata in sorted(shelf.glob("*/configs/metadata.json")):
            folder = metadata.parents[1]
            # A link may lead to somebody else's bundle, which is then opened by its path.
            if folder.name not in seen and folder.resolve().parent == shelf:
                seen.add(folder.name)
                yield BundleFolder(folder.name, folder, own=True)


def _headline(metadata: Metadata) -> str:
    """Returns `"PSNR 22.4 dB on one held-out patient"`, or "" where the metadata declares none."""
    told = metadata.fields.get("headline")
    if not isinstance(told, dict):
        return ""
    words = (told.get("metric"), told.get("value"), told.get("unit"))
    number = " ".join(str(word) for word in words if word not in {None, ""})
    return f"{number} on {told['test_set']}" if told.get("test_set") else number
