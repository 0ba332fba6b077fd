"""What a score means: its place among the scores of healthy tissue, as a p-value that states what it rests on.

A score s becomes p = (1 + #{reference >= s}) / (n + 1), the share of healthy scores as large, counted so that it is
valid for any n: with n healthy scores that the new one is exchangeable with, P(p <= a) <= a (Vovk et al., Algorithmic
Learning in a Random World, 2005; Phipson and Smyth, Stat Appl Genet Mol Biol 9:39, 2010). The smallest p is 1/(n + 1).
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medgen.case import Findings, RegionScore
from medgen.errors import BundleError
from medgen.prepare.brain import FOUND_FLAG

SCHEMA = "medgen-healthy-reference-1"
OUTSIDE_FLAG = "outside-reference"
RESOLUTION_FLAG = "reference-resolution"
UNCALIBRATED_FLAG = "uncalibrated"
SIMULATED_MM = (1.0, 1.0, 1.0)  # voxels of simulated scans; coarser ones are not compared with them
_SPACING_MARGIN = 1.5  # how much coarser or finer than the healthy scans a scan may be
# What an input check says of a scan that the reference knows nothing of.
FOREIGN = frozenset(
    {"input-contrast", "input-resolution", "input-modality", "input-body-part", "input-unfamiliar", RESOLUTION_FLAG}
)


def p_value(score: float, reference: npt.ArrayLike) -> float:
    """Returns (1 + the number of reference scores that are as large) / (n + 1).

    Example:
        >>> p_value(3.0, [1, 2, 3, 4]), p_value(9.0, [1, 2, 3, 4])
        (0.6, 0.2)
    """
    known = np.asarray(reference, dtype=np.float64)
    return float((1 + np.count_nonzero(known >= score)) / (known.size + 1))


@dataclass(frozen=True)
class Healthy:
    """The scores of one healthy person, or of what is healthy in a patient.

    Attributes:
        patient: whose; of simulated people, their seed.
        regions: scores of regions.
        scan: score of the scan; None of a patient, whose scan as a whole is not healthy.
        weights_sha256: of the model that scored; another than the reference's, which had not seen the patient.
    """

    patient: str
    regions: tuple[float, ...]
    scan: float | None = None
    weights_sha256: str = ""


@dataclass(frozen=True)
class HealthyReference:
    """Scores of healthy tissue, as one model and one way of scoring give them.

    Attributes:
        weights_sha256: of the model.
        score: how it was scored, in words.
        contrast: of the scans.
        finest_mm: range of the shortest side of their voxels.
        coarsest_mm: range of the longest side.
        heads: whether brains were found in whole heads; if not, none that was found in one is compared.
        patients: healthy tissue of real scans.
        simulated: simulated scans.
    """

    weights_sha256: str
    score: str
    contrast: str
    finest_mm: tuple[float, float]
    coarsest_mm: tuple[float, float]
    heads: bool
    patients: tuple[Healthy, ...]
    simulated: tuple[Healthy, ...]

    @classmethod
    def load(cls, path: str) -> "HealthyReference":
        """Reads the file that `save` wrote.

        Raises:
            BundleError: it is missing or of another form.
        """
        file = Path(path)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise BundleError(f"{file.name}: expected schema {SCHEMA}, got {content['schema']}")
            return cls(
                str(content["weights_sha256"]),
                str(content["score"]),
                str(content["contrast"]),
                _range(content["finest_mm"]),
                _range(content["coarsest_mm"]),
                bool(content["heads"]),
                _people(content["patients"]),
                _people(content["simulated"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{file.name}: expected a healthy reference, got {type(error).__name__} {error}; "
                "make it with `medgen calibrate`"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Returns the reference as plain JSON types."""
        groups = {
            name: [
                {
                    "patient": one.patient,
                    "weights_sha256": one.weights_sha256,
                    "regions": _short(one.regions),
                    "scan": _short([one.scan])[0],
                }
                for one in group
            ]
            for name, group in (("patients", self.patients), ("simulated", self.simulated))
        }
        return {
            "schema": SCHEMA,
            "weights_sha256": self.weights_sha256,
            "score": self.score,
            "contrast": self.contrast,
            "finest_mm": list(self.finest_mm),
            "coarsest_mm": list(self.coarsest_mm),
            "heads": self.heads,
            **groups,
        }

    @property
    def regions(self) -> npt.NDArray[np.float64]:
        """Scores of all regions of real healthy tissue."""
        return _joined(self.patients)

    @property
    def scans(self) -> npt.NDArray[np.float64]:
        """Scores of simulated scans."""
        return np.array([one.scan for one in self.simulated if one.scan is not None], dtype=np.float64)

    def describe(self) -> str:
        """Says what p-values rest on."""
        n, scans = self.regions.size, self.scans.size
        whole = f"scans against {scans} simulated ones, smallest p {1 / (scans + 1):.2g}" if scans else "scans not"
        return (
            f"{self.contrast}: {n} regions of healthy tissue of {len(self.patients)} patients, smallest p "
            f"{1 / (n + 1):.2g}, not corrected for the number of regions, {self._seen_before()}; {whole}"
        )

    def _seen_before(self) -> str:
        strange = sum(one.weights_sha256 not in {"", self.weights_sha256} for one in self.patients)
        if strange == len(self.patients):
            return "scored by weights that had not seen them"
        return f"{len(self.patients) - strange} of them scored by these very weights"

    @property
    def sha256(self) -> str:
        """Of its content: another reference gives other p-values."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def flags_of(self, spacing_mm: Sequence[float]) -> tuple[str, ...]:
        """Returns what keeps a scan of these voxels from being compared."""
        sides = ((min(spacing_mm), self.finest_mm), (max(spacing_mm), self.coarsest_mm))
        known = all(low / _SPACING_MARGIN <= side <= high * _SPACING_MARGIN for side, (low, high) in sides)
        return () if known else (RESOLUTION_FLAG,)

    def judge(self, regions: Sequence[RegionScore], scan: float, flags: Sequence[str] = ()) -> Findings:
        """Returns what scores mean.

        A scan that the reference knows nothing of (another contrast, resolution, body part) has no p-values and no
        score: it may score high because of the scanner, and must not count as sick.

        Args:
            regions: scores of regions.
            scan: score of the scan, in its own spreads.
            flags: of the input check, and `flags_of`.
        """
        foreign = sorted((FOREIGN if self.heads else FOREIGN | {FOUND_FLAG}) & set(flags))
        if foreign:
            return Findings(None, tuple(regions), None, f"none: {OUTSIDE_FLAG} ({', '.join(foreign)})")
        known = self.regions
        judged = tuple(
            region if math.isnan(region.evidence) else replace(region, p=p_value(region.evidence, known))
            for region in regions
        )
        simulated = self.scans if not self.flags_of(SIMULATED_MM) else np.zeros(0)
        chance = p_value(scan, simulated) if simulated.size else None
        return Findings(scan, judged, chance, self.describe())

    def held_out(self, group: str = "patients") -> dict[str, npt.NDArray[np.float64]]:
        """Returns the p-values of each person's regions, of all scans, against those of all the others of a group."""
        people = self.patients if group == "patients" else self.simulated
        found: dict[str, npt.NDArray[np.float64]] = {}
        for name in dict.fromkeys(one.patient for one in people):
            others = _joined([one for one in people if one.patient != name])
            if others.size:
                own = _joined([one for one in people if one.patient == name])
                found[name] = np.array([p_value(score, others) for score in own])
        return found

    def held_out_scans(self) -> list[float]:
        """Returns the p-value of each healthy scan against those of the other people's."""
        known = [(one.patient, one.scan) for one in (*self.patients, *self.simulated) if one.scan is not None]
        return [p_value(scan, [other for name, other in known if name != patient]) for patient, scan in known]


def _people(content: Sequence[Mapping[str, Any]]) -> tuple[Healthy, ...]:
    return tuple(Healthy(one["patient"], tuple(one["regions"]), one["scan"], one["weights_sha256"]) for one in content)


def _range(content: Sequence[float]) -> tuple[float, float]:
    low, high = content
    return float(low), float(high)


def _joined(people: Sequence[Healthy]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *(np.asarray(one.regions, dtype=np.float64) for one in people)])


def _short(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.5g}") for value in values]


def require_reference_of(reference: HealthyReference, weights_sha256: str) -> None:
    """Refuses a reference of another model.

    Raises:
        BundleError: its scores are of other weights.
    """
    if reference.weights_sha256 != weights_sha256:
        raise BundleError(
            f"expected a healthy reference of these weights ({weights_sha256[:12]}), got one of "
            f"{reference.weights_sha256[:12]}; fit it again with `medgen calibrate`"
        )
