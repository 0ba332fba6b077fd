"""What an image looks like, in a few named numbers: how large the body is, what in it is bright, and where that lies.

They hardly change with gain, gamma, shading, slice thickness or orientation: a few patients suffice to learn from.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional

from medgen.geometry import orientation_codes, spacing_mm

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

VIEW_MM = 3.0
_MOST_VOXELS = 160  # along an axis of the view, 48 cm: beyond it the rest of a body is not looked at
_FEWEST_VOXELS = 50
# Up to the first volume a body is a brain without skull, from the second on a whole head; so much rim is left out.
_HEAD_FROM_L = (1.7, 2.4)
_MARGIN_MM = (3.0, 14.0)
_BANDS = {
    "dark": (0.0, 0.2),
    "middle": (0.2, 0.6),
    "low": (0.2, 0.5),
    "high": (0.5, 0.9),
    "bright": (0.6, 1.0),
    "top": (0.8, 1.0),
}
_EXTREME = 0.15
_SHADING_MM = 14.0
_AWAY_MM = ((0.0, 5.0), (5.0, 8.0), (8.0, 27.0))


@dataclass(frozen=True, eq=False)
class View:
    """An image at 3 mm along the axes nearest to R, A and S.

    Attributes:
        image: `(X, Y, Z)`, as measured.
        body: what is not air, the largest piece, holes filled; both are cut to its box.
    """

    image: Array
    body: Mask


def view_of(image: npt.ArrayLike, affine: npt.ArrayLike, *, whole: bool = False) -> View:
    """Returns the view of an image `(X, Y, Z)`; obliquity is left in, since none of the numbers needs exact axes.

    Args:
        image: voxels, any unit.
        affine: voxel indices to RAS+ millimetres, `(4, 4)`.
        whole: keep the air around the body's box.
    """
    volume = torch.as_tensor(np.asarray(image, dtype=np.float32))
    codes, spacing = orientation_codes(affine), spacing_mm(affine)
    order = [next(axis for axis, code in enumerate(codes) if code in pair) for pair in ("LR", "PA", "IS")]
    volume = volume.permute(order).flip([axis for axis in range(3) if codes[order[axis]] in "LPI"])
    wanted = [
        int(np.clip(round(volume.shape[axis] * spacing[order[axis]] / VIEW_MM), 1, _MOST_VOXELS)) for axis in range(3)
    ]
    coarser = tuple(min(a, b) for a, b in zip(wanted, volume.shape, strict=True))
    resampled = functional.adaptive_avg_pool3d(volume[None, None], (coarser[0], coarser[1], coarser[2]))
    resampled = functional.interpolate(resampled, size=wanted, mode="trilinear", align_corners=False)[0, 0]
    array = resampled.numpy()
    if whole:
        return View(array, np.ones(array.shape, dtype=np.bool_))
    body = body_mask(array)
    around = ndimage.find_objects(body.astype(np.uint8))
    box = around[0] if around else (slice(None),) * 3
    return View(array[box], body[box])


def body_mask(image: Array) -> Mask:
    """Returns what stands out from the air: the largest connected piece, its holes filled in every axial slice."""
    low, high = np.percentile(image, [1.0, 99.5])
    middle = image[(image > low) & (image < high)]
    if middle.size == 0:
        return np.zeros(image.shape, dtype=np.bool_)
    above = image > low + 0.6 * (_otsu(image, low, high) - low)
    pieces, count = ndimage.label(ndimage.binary_opening(above) if min(image.shape) > 4 else above)
    if count == 0:
        return np.zeros(image.shape, dtype=np.bool_)
    body = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    body = ndimage.binary_closing(np.pad(body, 3), iterations=3)[3:-3, 3:-3, 3:-3]
    for index in range(body.shape[2]):
        body[:, :, index] = ndimage.binary_fill_holes(body[:, :, index])
    return np.asarray(body, dtype=np.bool_)


def _otsu(image: Array, low: float, high: float) -> float:
    counts, edges = np.histogram(image, bins=64, range=(low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * centres)
    above = np.maximum(below[-1] - below, 1e-9)
    between = below * above * (mass / np.maximum(below, 1e-9) - (mass[-1] - mass) / above) ** 2
    return float(centres[int(np.argmax(between))])


def size_of(view: View) -> dict[str, float]:
    """Returns how large the body is: the shortest and the longest side of its box `[mm]`, and its volume `[l]`."""
    extents = [float(n) * VIEW_MM for n in view.body.shape]
    litres = float(view.body.sum()) * VIEW_MM**3 / 1e6
    return {"shortest_mm": min(extents), "longest_mm": max(extents), "volume_l": litres}


def appearance(view: View) -> dict[str, float]:
    """Returns the numbers by name, all finite; empty when there is no body.

    They are taken where the brain would be: below the surface, and below scalp and skull if the body is a head's size.
    """
    if view.body.sum() < _FEWEST_VOXELS:
        return {}
    padded = ndimage.distance_transform_edt(np.pad(view.body, 1))
    depth = np.asarray(padded[1:-1, 1:-1, 1:-1] * VIEW_MM, dtype=np.float32)
    inside = view.body & (depth > np.interp(size_of(view)["volume_l"], _HEAD_FROM_L, _MARGIN_MM))
    if inside.sum() < _FEWEST_VOXELS:
        inside = view.body
    image = _evened(view)
    ranks = _ranks_within(image, inside)
    return {
        **_histogram(image[inside]),
        **_bands(ranks, inside, depth),
        **_neighbours(ranks, inside),
    }


def _histogram(values: Array) -> dict[str, float]:
    low, high = np.percentile(values, [2.0, 98.0])
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0.0, 1.0)
    quartiles = np.percentile(scaled, [25, 50, 75])
    spread = max(float(scaled.std()), 1e-9)
    return {
        **{f"quantile_{q}": float(v) for q, v in zip((25, 50, 75), quartiles, strict=True)},
        "skewness": float(((scaled - scaled.mean()) ** 3).mean()) / spread**3,
    }


def _bands(ranks: Array, inside: Mask, depth: Array) -> dict[str, float]:
    """How compact and how deep the tissue of a band of brightness is: white matter is both, cortex is neither.

    White matter is brightest in T1, in the middle in FLAIR, dark in T2 and proton density. A rank is the fraction of
    the voxels inside that are darker.
    """
    whole = ndimage.uniform_filter(inside.astype(np.float32), 3)
    compact, deep = {}, {}
    for name, (low, high) in _BANDS.items():
        band = inside & (ranks >= low) & (ranks <= high)
        around = ndimage.uniform_filter(band.astype(np.float32), 3)
        compact[name] = float((around[band] / whole[band]).mean()) / (high - low) ** 0.5
        deep[name] = float(depth[band].mean() / depth[inside].mean()) - 1
    return {
        "compact_bright": compact["bright"],
        "compact_dark": compact["dark"],
        "white_is_bright": compact["bright"] - compact["middle"],
        "white_is_high": compact["high"] - compact["low"],
        "bright_is_deep": deep["bright"] - deep["middle"],
        "brightest_is_deep": deep["top"],
    }


def _neighbours(ranks: Array, inside: Mask) -> dict[str, float]:
    """How much brighter tissue is far from the darkest than near it, and how much darker far from the brightest.

    Where fluid is dark, the cortex next to it is darker than the white matter behind it in T1, brighter in FLAIR.
    """
    found = {}
    for name, sign, extreme in (
        ("from_dark", 1, inside & (ranks < _EXTREME)),
        ("from_bright", -1, inside & (ranks > 1 - _EXTREME)),
    ):
        away = ndimage.distance_transform_edt(~extreme) * VIEW_MM
        middles = []
        for near, far in _AWAY_MM:
            values = ranks[inside & (away > near) & (away <= far)]
            middles.append(float(np.median(values)) if values.size else 0.5)
        found[f"rise_{name}"] = sign * (middles[2] - middles[0])
        found[f"late_rise_{name}"] = sign * (middles[2] - middles[1])
    return found


def _evened(view: View) -> Array:
    """The image without what varies over centimetres: a coil's shading, and with it some of a large tumour."""
    low, high = np.percentile(view.image, [1.0, 99.8])
    image = np.clip(view.image - low, 0.0, high - low)
    weight = ndimage.gaussian_filter(view.body.astype(np.float32), _SHADING_MM / VIEW_MM)
    local = ndimage.gaussian_filter(image * view.body, _SHADING_MM / VIEW_MM) / np.maximum(weight, 1e-3)
    return np.asarray(image / np.maximum(local, 1e-3 * max(high - low, 1e-6)), dtype=np.float32)


def _ranks_within(image: Array, inside: Mask) -> Array:
    """The fraction of the voxels inside that are darker; 0 outside."""
    ranks = np.zeros(image.shape, dtype=np.float32)
    values = image[inside]
    places = np.empty(len(values), dtype=np.float32)
    places[np.argsort(values, kind="stable")] = np.linspace(0.0, 1.0, len(values), dtype=np.float32)
    ranks[inside] = places
    return ranks
