"""What computes a network, and how that was found: plain data between the choice of a back end and its records."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from medgen.errors import BundleError

_SHARE_OF_RANGE = 0.05


@dataclass(frozen=True)
class Tolerance:
    """How far a back end's output may be from torch's in fp32, on the reference, before postprocessing.

    Attributes:
        psnr_db: peak signal-to-noise ratio at least, the peak being the range of torch's output [dB].
        absolute: largest difference at most, in units of the output; None: a twentieth of that range.
    """

    psnr_db: float = 60.0
    absolute: float | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any], name: str) -> "Tolerance":
        """Returns what a bundle's metadata state as `tolerance`, for what is not stated the defaults.

        Raises:
            BundleError: it is no object, or what it states under these names are no numbers.
        """
        stated = fields.get("tolerance", {})
        try:
            known = {key: float(stated[key]) for key in ("psnr_db", "absolute") if key in stated}
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"expected tolerance of {name} to hold psnr_db and absolute as numbers, got {stated!r}"
            ) from error
        return cls(**known)

    def broken_by(self, psnr_db: float, largest: float, extent: float) -> bool:
        """Says whether an output is too far off: its PSNR, its largest difference, and the range of torch's output."""
        limit = _SHARE_OF_RANGE * extent if self.absolute is None else self.absolute
        return not (psnr_db >= self.psnr_db and largest <= limit)


@dataclass(frozen=True)
class Verdict:
    """How one candidate did on the reference.

    Attributes:
        candidate: backend and precision, `"openvino bf16"`.
        seconds: on the reference; 0 where it could not be run.
        psnr_db: to torch in fp32 [dB].
        max_abs: largest difference, in units of the output.
        refused: why it is not taken; empty where it may be.
    """

    candidate: str
    seconds: float = 0.0
    psnr_db: float = 0.0
    max_abs: float = 0.0
    refused: str = ""


@dataclass(frozen=True)
class Choice:
    """What computes the network, and why.

    Attributes:
        backend: what it is.
        precision: of its arithmetic.
        version: `"openvino 2026.4.1"`.
        psnr_db: of its output on the reference, to torch in fp32; None where nothing was compared.
        verdicts: of all that were tried.
        only_sizes: of windows, by way of using the network: others are left to torch in fp32; mostly empty.
    """

    backend: str
    precision: str
    version: str = ""
    psnr_db: float | None = None
    verdicts: tuple[Verdict, ...] = ()
    only_sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns what a record keeps of it, as plain JSON types."""
        found: dict[str, Any] = {"backend": self.backend, "precision": self.precision, "version": self.version}
        if self.only_sizes:
            sizes = sorted({"x".join(map(str, size)) for size in self.only_sizes.values()})
            found |= {"converted_for": ", ".join(sizes), "other_sizes": "torch fp32"}
        return found if self.psnr_db is None else {**found, "reference_psnr_db": round(self.psnr_db, 1)}

    def to_run_json(self) -> dict[str, Any]:
        """Returns the same with all that was tried, for the record of a run."""
        return {**self.to_json(), "tried": [asdict(verdict) for verdict in self.verdicts]}
