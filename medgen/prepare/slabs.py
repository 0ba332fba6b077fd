"""Slices of a scan to learn from: averaged to thicker ones, or only those that are not kept for a test."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import MetaKeys
from torch import Tensor

from medgen.errors import GeometryError


class RandSlabsd(Randomizable, MapTransform):  # type: ignore[misc]
    """Averages neighbouring slices of all keys alike into thicker ones, as a scanner reconstructs them.

    Noise, drawn slice by slice, averages out as it does there.

    Args:
        keys: volumes `(C, X, Y, Z)` of one grid with slices along the last axis.
        thickness: numbers of slices, one of which is drawn; one that a volume has too few slices for is left out.
        allow_missing_keys: average those that are there.
        most_mm: slabs are no thicker than that; slices that are thicker stay as they are.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        thickness: Sequence[int] = (1, 2, 3, 5),
        allow_missing_keys: bool = False,
        most_mm: float = np.inf,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.thickness, self.most_mm = tuple(thickness), most_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Averages from a random slice on; what does not fill a slab is cut off, and the affine follows."""
        result = dict(data)
        draw, shift = self.R.random_sample(2)
        for key in self.key_iterator(result):
            volume = result[key]
            slices = volume.shape[-1]
            each_mm = float(volume.pixdim[2]) if isinstance(volume, MetaTensor) else 0.0
            possible = [n for n in self.thickness if n <= slices and n * each_mm <= self.most_mm] or [1]
            thick = possible[int(draw * len(possible))]
            first = int(shift * min(thick, slices - thick + 1))
            count = (slices - first) // thick
            if thick > 1:
                part = volume.as_tensor()[..., first : first + count * thick]
                slabs = part.reshape(*part.shape[:-1], count, thick).mean(dim=-1)
                result[key] = _moved(slabs, volume, first, thick)
        return result


class RandPiecesd(Randomizable, MapTransform):  # type: ignore[misc]
    """Cuts a scan to one of the runs of slices that its item names, the longer the likelier; without any, it stays.

    So part of a scan can be kept for a test.

    Args:
        keys: volumes `(C, X, Y, Z)` of one grid with slices along the last axis.
        pieces_key: where an item has its runs, each the first slice and the one after the last.
        allow_missing_keys: cut those that are there.
    """

    def __init__(self, keys: str | Sequence[str], pieces_key: str = "slices", allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.pieces_key = pieces_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draws a run, the same for all keys.

        Raises:
            GeometryError: a run is not within the scan.
        """
        result = dict(data)
        pieces = result.get(self.pieces_key)
        if not pieces:
            return result
        lengths = np.array([end - first for first, end in pieces])
        first, end = pieces[int(self.R.choice(len(pieces), p=lengths / lengths.sum()))]
        for key in self.key_iterator(result):
            volume = result[key]
            if not 0 <= first < end <= volume.shape[-1]:
                raise GeometryError(
                    f"expected slices to learn from within the {volume.shape[-1]} of a scan, got {first} to {end}"
                )
            result[key] = _moved(volume.as_tensor()[..., first:end], volume, first, 1)
        return result


def _moved(slabs: Tensor, volume: MetaTensor, first: int, thick: int) -> MetaTensor:
    """Says of slabs where they lie, and all else that was known of the volume."""
    affine: Tensor = volume.affine.clone()
    affine[:3, 3] += affine[:3, 2] * (first + (thick - 1) / 2)
    affine[:3, 2] *= thick
    return MetaTensor(slabs, meta={**volume.meta, MetaKeys.AFFINE: affine})
