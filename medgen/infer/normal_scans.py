"""What the score of an eye means: its place among the scores of normal eyes that a model was not trained on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medgen.case import Findings, RegionScore
from medgen.infer.reference import HealthyReference, p_value


class NormalScans(HealthyReference):
    """Scores of whole normal scans, each by weights that had not seen that person.

    Every scan is resampled to one grid before it is scored, so that none is foreign for its resolution. Scans and parts
    have p-values against those of the normal people.
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
        return (
            f"scans against {n} normal people, smallest p {1 / (n + 1):.2g}, parts against {parts} of "
            f"theirs, smallest p {1 / (parts + 1):.2g}, not corrected for their number, {self._seen_before()}"
        )

    def judge(self, regions: Sequence[RegionScore], scan: float, flags: Sequence[str] = ()) -> Findings:
        """Returns what scores mean."""
        del flags
        known = self.regions
        judged = tuple(replace(region, p=p_value(region.evidence, known)) for region in regions)
        return Findings(scan, judged, p_value(scan, self.scans), self.describe())
