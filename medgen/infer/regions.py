"""What a map of scores amounts to: one number for each region of the brain, and one for the scan.

Regions are a grid in the brain's own box: halves, fifths from front to back, quarters from below to above. They follow
the patient's directions, not an atlas: no registration that could go wrong decides where something lies.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medgen.case import RegionScore
from medgen.errors import IntensityError
from medgen.geometry import spacing_mm

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

REGIONS_KEY = "regions"
SCAN_KEY = "scan_score"
EVIDENCE_KEY = "evidence"
TOP_SHARE, SCAN_TOP_SHARE = 0.0025, 0.001  # a tenth of a millilitre of most regions, one millilitre of most brains
LEAST_ML, LEAST_SEEN = 4.0, 0.5
LEAST_REGIONS = 10  # fewer say little of what is usual in a scan
_SIDES = ("left", "right")
_DEPTHS = ("back", "mid-back", "middle", "mid-front", "front")
_HEIGHTS = ("base", "lower", "upper", "top")
_TRIMMED = 0.5  # percent of the brain on each side that does not stretch its box: a cord, a remnant of the skull


def region_labels(brain: Mask) -> tuple[npt.NDArray[np.int16], tuple[str, ...]]:
    """Returns the number of the region of each voxel, 0 outside of the brain, and the names of regions 1, 2, ...

    Args:
        brain: `(X, Y, Z)`, RAS: the axes run to the right, to the front and up.

    Raises:
        IntensityError: there is no brain.

    Example:
        >>> labels, names = region_labels(np.ones((20, 25, 20), dtype=bool))
        >>> names[labels[0, 0, 0] - 1], names[labels[-1, -1, -1] - 1]
        ('left back base', 'right front top')
    """
    if not brain.any():
        raise IntensityError("expected a brain in the image, found none; is it a head, and not cut off?")
    parts = []
    for axis, count in enumerate((len(_SIDES), len(_DEPTHS), len(_HEIGHTS))):
        profile = brain.sum(axis=tuple(other for other in range(3) if other != axis)).cumsum() / brain.sum()
        low, high = np.searchsorted(profile, [_TRIMMED / 100, 1 - _TRIMMED / 100])
        places = (np.arange(brain.shape[axis]) - low) / max(int(high - low) + 1, 1)
        parts.append(np.clip((places * count).astype(np.int16), 0, count - 1))
    x, y, z = np.meshgrid(*parts, indexing="ij", sparse=True)
    numbers = 1 + z + len(_HEIGHTS) * (y + len(_DEPTHS) * x)
    names = tuple(" ".join(words) for words in product(_SIDES, _DEPTHS, _HEIGHTS))
    return np.asarray(np.where(brain, numbers, 0), dtype=np.int16), names


def score_regions(
    heat: Volume, brain: Mask, affine: npt.ArrayLike, evidence: Volume | None = None, seen: Mask | None = None
) -> list[RegionScore]:
    """Returns the score of every region with at least 4 ml of brain, the highest first.

    A region's score is the mean of its highest 0.25 %, some 0.1 ml: a lesion of a few millimetres is enough, a single
    voxel is not. It is a share and not a volume, as the highest values of more tissue are higher by chance.

    Args:
        heat: map of scores `(X, Y, Z)`, RAS.
        brain: that regions are made of, and in which they are scored.
        affine: of both, to RAS+ [mm].
        evidence: a second map that is scored the same way, each region then among the others, see `among_themselves`;
            the first if None.
        seen: of the brain, what is looked at; all of it if None. What is left out (lesions, when what is wanted is the
            score of normal tissue) does not change where regions lie; regions of which less than half is left are not
            scored.

    Raises:
        IntensityError: there is no brain.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    voxel_ml = float(np.prod(spacing_mm(matrix))) / 1000
    labels, names = region_labels(brain)
    whole = np.bincount(labels.ravel(), minlength=len(names) + 1)[1:]
    if seen is not None:
        labels = np.where(seen, labels, 0).astype(np.int16)
    flat = np.flatnonzero(labels)
    flat = flat[np.argsort(labels.ravel()[flat], kind="stable")]
    counts = np.bincount(labels.ravel()[flat], minlength=len(names) + 1)[1:]
    found = []
    for name, places, all_of_it in zip(names, np.split(flat, counts.cumsum()[:-1]), whole, strict=True):
        if len(places) * voxel_ml < LEAST_ML or len(places) < LEAST_SEEN * all_of_it:
            continue
        values = heat.ravel()[places]
        peak = np.unravel_index(places[int(values.argmax())], heat.shape)
        x, y, z = (matrix @ [*map(float, peak), 1.0])[:3].round(1).tolist()
        score = top_mean(values, TOP_SHARE)
        rests_on = score if evidence is None else top_mean(evidence.ravel()[places], TOP_SHARE)
        found.append(RegionScore(name, score, len(places) * voxel_ml, (x, y, z), rests_on))
    among = among_themselves([region.evidence for region in found])
    told = [replace(region, evidence=rests_on) for region, rests_on in zip(found, among, strict=True)]
    return sorted(told, key=lambda region: -region.score)


def among_themselves(scores: Sequence[float]) -> list[float]:
    """Returns each score's distance above the median of all, in median absolute deviations from it.

    Scans differ in how high all of their regions score, for their scanners and because no two people are alike; a
    region is compared with the others of its scan first, and then with those of healthy people. Disease in half of
    the regions would move the median: p-values then grow, and promise less. NaN where there are fewer than ten.

    Example:
        >>> among_themselves([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18])[-3:]
        [1.0, 1.3333333333333333, 4.0]
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size < LEAST_REGIONS:
        return [math.nan] * values.size
    middle = np.median(values)
    spread = max(float(np.median(np.abs(values - middle))), 1e-6)
    return [float(value) for value in (values - middle) / spread]


def score_scan(heat: Volume, brain: Mask) -> float:
    """Returns the score of a whole scan: the mean of the highest 0.1 % of its brain, some 1 ml."""
    return top_mean(heat[brain], SCAN_TOP_SHARE)


def top_mean(values: Volume, share: float) -> float:
    """Returns the mean of the highest `share` of values, of one at least."""
    number = int(np.clip(round(share * values.size), 1, values.size))
    return float(np.partition(values, -number)[-number:].mean(dtype=np.float64))


def in_own_spreads(evidence: Volume, brain: Mask) -> Volume:
    """Returns a map as its distance from the scan's median, in units of the scan's own spread.

    The spread is the distance from the median down to the 10th percentile: bright lesions, however large, do not touch
    it, and scanners that are noisier all over do not look sicker for it.
    """
    low, middle = np.percentile(evidence[brain], [10, 50])
    return np.asarray((evidence - middle) / max(float(middle - low), 1e-6), dtype=np.float32)


class ScoreRegionsd(MapTransform):  # type: ignore[misc]
    """Adds to an item the scores of its regions (`regions`) and of the scan (`scan_score`).

    Args:
        keys: the map of scores `(C, X, Y, Z)`, RAS, on the network's grid. The first channel ranks regions, and is
            kept; the last, in the scan's own spreads, is their evidence, and the score of the scan.
        brain_key: the brain on the same grid, `(1, X, Y, Z)`, positive inside.
    """

    def __init__(self, keys: str, brain_key: str = "brain") -> None:
        super().__init__(keys)
        self.brain_key = brain_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scores the map."""
        result = dict(data)
        for key in self.key_iterator(result):
            heat, evidence = (np.asarray(result[key][n].cpu().numpy(), dtype=np.float32) for n in (0, -1))
            brain = np.asarray(result[self.brain_key][0].cpu().numpy()) > 0
            affine = np.asarray(result[key].affine) if isinstance(result[key], MetaTensor) else np.eye(4)
            evidence = in_own_spreads(evidence, brain)
            result[REGIONS_KEY] = score_regions(heat, brain, affine, evidence)
            result[SCAN_KEY] = score_scan(evidence, brain)
            result[EVIDENCE_KEY] = evidence
            result[key] = result[key][:1]
        return result
