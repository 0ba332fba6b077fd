"""What a bundle says of itself in `configs/metadata.json`, in the terms in which a run needs it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.case import OutputKind
from medgen.errors import BundleError
from medgen.provenance import file_sha256

# Formats of the MONAI metadata schema that are not an image of the patient, although their type may say "image".
_NOT_AN_IMAGE = {"latent", "noise", "points", "embedding", "dict", "classes"}
_NOT_AN_OUTPUT = {"object", "probabilities", "tuples", "series", "points"}  # types; "label" is used beside "image"
_MODALITIES = {"CT", "MR", "OPT", "OP"}
_LABELS = {"segmentation", "labels"}


@dataclass(frozen=True, eq=False)
class Metadata:
    """The metadata of one bundle.

    Attributes:
        bundle: name of the bundle: its folder's.
        fields: the file's content.
    """

    bundle: str
    fields: Mapping[str, Any]

    @property
    def version(self) -> str:
        """Version of the bundle."""
        return str(self.fields.get("version", "unversioned"))

    @property
    def task(self) -> str:
        """What the bundle does, in one line."""
        return str(self.fields.get("task", ""))

    @property
    def input(self) -> Mapping[str, Any]:
        """The tensor description of the first input; empty where none is declared."""
        return _first(self._format("inputs"))

    @property
    def output(self) -> Mapping[str, Any]:
        """The tensor description of the first output; empty where none is declared."""
        return _first(self._format("outputs"))

    @property
    def modality_in(self) -> str:
        """DICOM modality of the input, "MR", "CT", "OPT" or "OP"; "" where none of these is declared."""
        return _dicom_modality(self.fields.get("modality_in"), self.input)

    @property
    def modality_out(self) -> str:
        """DICOM modality of the output: declared, else the input's, since most tasks stay within one."""
        return _dicom_modality(self.fields.get("modality_out"), self.output) or self.modality_in

    @property
    def input_channels(self) -> int | None:
        """Channels that the network takes, which need not be those of a file: preprocessing can add some."""
        declared = self.input.get("num_channels")
        return declared if isinstance(declared, int) else None

    def data_problems(self, *, by_slice: bool = False) -> list[str]:
        """Says what keeps the bundle from making one image of one 3-D image, an item for each reason.

        Args:
            by_slice: the inferer takes a volume through a 2-D network.
        """
        problems = self._input_problems({2, 3} if by_slice else {3})
        kind, form = str(self.output.get("type", "image")), str(self.output.get("format", ""))
        if kind in _NOT_AN_OUTPUT or form in _NOT_AN_IMAGE:
            problems.append(f"an image as output (it gives type {kind!r}, format {form!r})")
        return problems

    def _input_problems(self, axes: set[int]) -> list[str]:
        inputs = self._format("inputs")
        if not inputs:
            return ["network_data_format.inputs in configs/metadata.json"]
        if len(inputs) > 1:
            return [f"one image as the only input (it needs {len(inputs)}: {', '.join(inputs)})"]
        kind, form = str(self.input.get("type", "image")), str(self.input.get("format", ""))
        if kind != "image" or form in _NOT_AN_IMAGE:
            return [f"an image as input (it takes type {kind!r}, format {form!r})"]
        problems = []
        # Several named channels are several images in one file. A number alone may count what preprocessing adds, such
        # as the clicks of an interactive network: that shows once a case is prepared.
        named = self.input.get("channel_def")
        if isinstance(named, dict) and len(named) > 1:
            names = ", ".join(map(str, named.values()))
            problems.append(f"an image of 1 channel as input (it needs {len(named)} channels: {names})")
        declared = len(self.input.get("spatial_shape", (0, 0, 0)))
        if declared not in axes:
            problems.append(f"a 3-D image as input (its spatial_shape has {declared} axes)")
        return problems

    def output_kind(self) -> OutputKind:
        """Returns what the bundle makes: declared by `output_suffix`, `output_unit` and so on, else told.

        A label map gets BIDS' suffix `dseg` and the unit `"label"`; anything else is called after the bundle.
        """
        form = str(self.output.get("format", ""))
        told = "label" if form in _LABELS else "HU" if form == "hounsfield" else "arbitrary"
        unit = str(self.fields.get("output_unit", told))
        words = re.findall(r"[A-Za-z0-9]+", self.bundle)
        guess = "dseg" if unit == "label" else "".join(word[:1].upper() + word[1:] for word in words)
        return OutputKind(
            suffix=str(self.fields.get("output_suffix", guess)),
            modality=self.modality_out or "MR",
            description=str(self.fields.get("output_description", f"Made by {self.bundle}")),
            unit=unit,
            process=str(self.fields.get("output_process", "synthetic")),
        )

    def weights_sha256(self) -> dict[str, str]:
        """Returns the SHA-256 that the bundle names for its weights, by path relative to its folder.

        Raises:
            BundleError: `weights_sha256` is not an object of paths and sums.
        """
        named = self.fields.get("weights_sha256", {})
        if not isinstance(named, dict) or not all(isinstance(value, str) for value in named.values()):
            raise BundleError(
                f"expected weights_sha256 to map paths to SHA-256 sums in {self.bundle}/configs/metadata.json, "
                f"got {type(named).__name__}"
            )
        return {str(path): value.lower() for path, value in named.items()}

    def _format(self, side: str) -> Mapping[str, Any]:
        described = self.fields.get("network_data_format")
        listed = described.get(side) if isinstance(described, dict) else None
        return listed if isinstance(listed, dict) else {}


def read_metadata(folder: Path) -> Metadata:
    """Reads `configs/metadata.json` of the bundle in `folder`.

    Raises:
        BundleError: the file is missing or not a JSON object.
    """
    path = folder / "configs" / "metadata.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"expected configs/metadata.json in bundle {folder.name}: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(f"expected JSON in {folder.name}/configs/metadata.json: {error}") from error
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        raise BundleError(f"expected a JSON object in {folder.name}/configs/metadata.json, got a {kind}")
    return Metadata(folder.name, fields)


def weights_state(folder: Path, named: Mapping[str, str]) -> str:
    """Says whether a bundle's weights are the ones that it names: `"verified"`, `"wrong"`, `"missing"` or `"unlisted"`.

    Args:
        folder: of the bundle.
        named: SHA-256 by path, see `Metadata.weights_sha256`.
    """
    if not named:
        return "unlisted"
    if not all((folder / path).is_file() for path in named):
        return "missing"
    return "verified" if all(file_sha256(folder / path) == sha for path, sha in named.items()) else "wrong"


def _first(described: Mapping[str, Any]) -> Mapping[str, Any]:
    tensor: object = next(iter(described.values()), {})
    return tensor if isinstance(tensor, dict) else {}


def _dicom_modality(declared: object, tensor: Mapping[str, Any]) -> str:
    """Returns a modality of `_MODALITIES` from what is declared, else from the tensor's modality or format, else ""."""
    for text in (declared, tensor.get("modality")):
        word = str(text or "").upper()
        if word in _MODALITIES:
            return word
        if word == "MRI":
            return "MR"
    return {"hounsfield": "CT", "magnitude": "MR"}.get(str(tensor.get("format", "")), "")
