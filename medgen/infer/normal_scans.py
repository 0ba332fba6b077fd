"""What the score of an eye means: its place among the scores of normal eyes that a model was not trained on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medgen.case import Findings, RegionScore
from medgen.infer.reference import HealthyReference, p_value

ABOVE_FLAG = "above-normal"  # of a scan that scores above every normal one of the reference
_ALIKE = 1.5


class NormalScans(HealthyReference):
    """Scores of whole normal scans, each by weights that had not seen that person.

    Every scan is resampled to one grid before it is scored, so that none is foreign for its resolution. Parts have
    p-values against those of the normal people; a scan has one against those with about as many parts, since the
    highest of many B-scans is higher than one.
    """

    @property
    def scans(self) -> npt.NDArray[np.float64]:
        """Scores of the normal scans."""
        return np.array([one.scan for one in self.patients if one.scan is not None], dtype=np.float64)

    def flags_of(self, spacing_mm: Sequence[float]) -> tuple[str, ...]:
        """Nothing: see the class."""
        del spacing_mm
        return ()

    def describe(self) -> str:
        """Says what p-values rest on."""
        n, parts = self.scans.size, self.regions.size
        people = len({one.patient for one in self.patients})
        return (
            f"scans against {n} normal ones of {people} people, smallest p {1 / (n + 1):.2g}, parts against {parts} of "
            f"theirs, smallest p {1 / (parts + 1):.2g}, not corrected for their number, {self._seen_before()}"
        )

    def judge(self, regions: Sequence[RegionScore], scan: float, flags: Sequence[str] = ()) -> Findings:
        """Returns what scores mean."""
        del flags
        known, alike = self.regions, self._alike(len(regions))
        judged = tuple(replace(region, p=p_value(region.evidence, known)) for region in regions)
        if not alike:
            return Findings(scan, judged, None, f"{self.describe()}; none of the scan: none has about as many B-scans")
        return Findings(scan, judged, p_value(scan, alike), self.describe())

    def is_above(self, findings: Findings) -> bool:
        """Says whether a scan scores above every normal one that it can be compared with."""
        alike = self._alike(len(findings.regions))
        return findings.score is not None and bool(alike) and findings.score > max(alike)

    def _alike(self, parts: int) -> list[float]:
        """Scores of normal scans with as many parts, by a factor of 1.5."""
        return [
            one.scan
            for one in self.patients
            if one.scan is not None and max(parts, len(one.regions)) <= _ALIKE * min(parts, len(one.regions))
        ]
