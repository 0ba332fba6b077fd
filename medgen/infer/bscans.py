"""What a map over flattened B-scans amounts to: a score of each part of the retina, of each B-scan, of the eye."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medgen.case import RegionScore
from medgen.errors import IntensityError
from medgen.infer.regions import REGIONS_KEY, SCAN_KEY, top_mean
from medgen.prepare.flatten import RETINA_KEY, place_of

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

TOP_SHARE = 0.05  # of a B-scan's or part's retina, whose mean is its score
TOP_BSCANS = 0.1  # of a volume's B-scans, whose mean is its score
SIDE_COLUMNS = 3  # at either end, where the map rests on half a patch
_ACROSS = ("left", "middle", "right")
_DEEP = ("inner", "outer")
_LEAST_PIXELS = 40


def score_bscan(heat: Volume, retina: Mask) -> float:
    """Returns the score of a B-scan `(X, rows)`: the mean of the highest 5 % of its retina, NaN where none is seen.

    Raises:
        IntensityError: shapes differ.
    """
    if heat.shape != retina.shape:
        raise IntensityError(f"expected a map and its retina on one grid, got {heat.shape} and {retina.shape}")
    values = heat[_without_sides(retina)]
    return top_mean(values, TOP_SHARE) if values.size >= _LEAST_PIXELS else math.nan


def score_volume(bscans: npt.ArrayLike) -> float:
    """Returns the score of an eye: the mean of the highest tenth of its B-scans' scores, of one at least.

    Raises:
        IntensityError: no B-scan shows enough of a retina.

    Example:
        >>> score_volume([0.2, 0.5, 0.1])
        0.5
    """
    values = np.asarray(bscans, dtype=np.float32)
    known = values[~np.isnan(values)]
    if not known.size:
        raise IntensityError("expected some retina inside of the picture, got none; is it all wedge?")
    return top_mean(known, TOP_BSCANS)


def retina_parts(retina: Mask) -> dict[str, Mask]:
    """Returns parts of a B-scan's retina `(X, rows)` by name: left, middle and right third, inner and outer half."""
    inside = _without_sides(retina)
    thirds = np.minimum(np.arange(len(retina)) * len(_ACROSS) // len(retina), len(_ACROSS) - 1)
    depth = np.cumsum(inside, axis=1)
    outer = depth > depth[:, -1:] / 2
    return {
        f"{side}, {layer} retina": inside & (thirds == n)[:, None] & (outer if layer == "outer" else ~outer)
        for n, side in enumerate(_ACROSS)
        for layer in _DEEP
    }


def _without_sides(retina: Mask) -> Mask:
    inside = retina.copy()
    inside[:SIDE_COLUMNS] = inside[-SIDE_COLUMNS:] = False
    return inside


class ScoreBScansd(MapTransform):  # type: ignore[misc]  # MONAI is untyped
    """Adds to an item the scores of the retina's parts (`regions`) and of the eye (`scan_score`), and cuts the map.

    Left and right are those of the picture. Of a volume the parts of every B-scan are scored; their number is in the
    name. The map is 0 outside of the retina from here on.

    Args:
        keys: the map `(1, X, rows, Z)`, on the flat band.
        source_key: the flattened B-scans, which know where they came from.
    """

    def __init__(self, keys: str, source_key: str = "image") -> None:
        super().__init__(keys)
        self.source_key = source_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scores the map."""
        result = dict(data)
        retina = np.asarray(result[RETINA_KEY][0].cpu().numpy()) > 0
        for key in self.key_iterator(result):
            heat = np.asarray(result[key][0].cpu().numpy(), dtype=np.float32)
            count = heat.shape[2]
            result[SCAN_KEY] = score_volume([score_bscan(heat[..., z], retina[..., z]) for z in range(count)])
            found = [one for z in range(count) for one in self._parts(heat, retina, z, result[self.source_key])]
            result[REGIONS_KEY] = sorted(found, key=lambda region: -region.score)
            result[key] = result[key] * result[RETINA_KEY].to(result[key].device)
        return result

    @staticmethod
    def _parts(heat: Volume, retina: Mask, z: int, source: MetaTensor) -> list[RegionScore]:
        where = f"B-scan {z}, " if heat.shape[2] > 1 else ""
        found = []
        for name, part in retina_parts(retina[..., z]).items():
            if part.sum() < _LEAST_PIXELS:
                continue
            shown = np.where(part, heat[..., z], -np.inf)
            column, row = np.unravel_index(int(shown.argmax()), shown.shape)
            score = top_mean(heat[..., z][part], TOP_SHARE)
            peak = place_of(source, int(column), int(row), z)
            found.append(RegionScore(f"{where}{name}", score, math.nan, peak, score))
        return found
