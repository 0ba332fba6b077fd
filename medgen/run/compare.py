"""A picture to judge a prediction by: source, prediction, truth and their difference, side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from medgen.case import Result
from medgen.errors import GeometryError
from medgen.metrics.hounsfield import body_mask
from medgen.metrics.synthesis import RANGE_PERCENTILE, foreground_mask, match_affine
from medgen.write.atomic import atomic_write
from medgen.write.preview import to_lpi

Volume = npt.NDArray[np.float32]
Slice = npt.NDArray[np.uint8]

_BONE_HU, _SOFT_HU = (-250.0, 1250.0), (-160.0, 240.0)
_TILE = 320  # pixels of the longer side of a plane
_CAPTION = 18
# Of the window is full colour: what was made up may be far off, what was denoised is off by its noise.
_MADE_UP_SHARE, _PROCESSED_SHARE = 0.5, 0.1
_INNER = 0.4  # of the patient's extent, shown larger


def write_comparison(result: Result, truth: Volume, path: Path) -> None:
    """Writes two planes through the middle of the foreground, thin slices first.

    Of a scan that was processed, it is one plane, and the middle of it enlarged.

    Brightness is matched as the metric does; HU are shown as they are, in a window from fat to dense bone, or of soft
    tissue where a CT was processed. Red is where the prediction is too bright, blue where it is too dark.

    Args:
        result: with its source and prediction.
        truth: `(X, Y, Z)` on the same grid.
        path: of the PNG.

    Raises:
        GeometryError: the truth has another shape.
        OutputError: the file cannot be written.
    """
    if truth.shape != result.image.shape:
        raise GeometryError(f"expected the truth on the prediction's grid {result.image.shape}, got {truth.shape}")
    mask = body_mask(truth) if result.kind.unit == "HU" else foreground_mask(result.source, truth)
    source, shown, true, window = _in_window(result, truth, mask)
    share = _MADE_UP_SHARE if result.kind.synthetic else _PROCESSED_SHARE
    pictures = {
        "source": _grey(to_lpi(source, result.grid)[0]),
        result.kind.description: _grey(to_lpi(shown, result.grid)[0]),
        "truth": _grey(to_lpi(true, result.grid)[0]),
        f"difference, +-{share:.0%} of {window}": _difference(to_lpi((shown - true) * mask, result.grid)[0], share),
    }
    turned, spacing = to_lpi(mask, result.grid)
    centre = [round(float(np.mean(places))) for places in np.nonzero(turned)]
    axes = sorted(range(3), key=lambda axis: (-round(spacing[axis], 1), -axis))[:2]
    if result.kind.synthetic:
        rows = [_row(pictures, axis, centre[axis], spacing) for axis in axes]
    else:
        parts = [_around(turned, axes[0], part) for part in (1.0, _INNER)]
        rows = [_row({t: p[part] for t, p in pictures.items()}, axes[0], centre[axes[0]], spacing) for part in parts]
    width = max(row.width for row in rows)
    page = Image.new("RGB", (width, sum(row.height for row in rows)))
    for index, row in enumerate(rows):
        page.paste(row, (0, sum(above.height for above in rows[:index])))
    with atomic_write(path) as part:
        page.save(part, format="PNG")


def _in_window(result: Result, truth: Volume, mask: npt.NDArray[np.bool_]) -> tuple[Volume, Volume, Volume, str]:
    """Returns source, prediction and truth, 0 for black and 1 for white, and what that range is."""
    if result.kind.unit != "HU":
        low, high = 0.0, float(np.percentile(truth[mask], RANGE_PERCENTILE))
        scale, offset = match_affine(result.image[mask], truth[mask])
        told = "range"
    else:
        low, high = _BONE_HU if result.kind.synthetic else _SOFT_HU
        scale, offset = 1.0, 0.0
        told = f"{low:.0f} to {high:.0f} HU"
    shown, true = ((image - low) / (high - low) for image in (scale * result.image + offset, truth))
    if result.kind.synthetic:
        return result.source / np.percentile(result.source[mask], RANGE_PERCENTILE), shown, true, told
    return (scale * result.source + offset - low) / (high - low), shown, true, told


def _around(mask: npt.NDArray[np.bool_], axis: int, part: float) -> tuple[slice, ...]:
    """The middle `part` of the box that holds a mask, across all axes but one."""
    found = []
    for along, places in enumerate(np.nonzero(mask)):
        middle, reach = (places.min() + places.max() + 1) / 2, part * (places.max() + 1 - places.min()) / 2
        found.append(slice(None) if along == axis else slice(round(middle - reach), max(1, round(middle + reach))))
    return tuple(found)


def _row(pictures: dict[str, Slice], axis: int, index: int, spacing: Sequence[float]) -> Image.Image:
    """The same plane of every picture, in true proportions."""
    across, down = (other for other in range(3) if other != axis)
    plane = next(iter(pictures.values())).shape
    size_mm = np.array([plane[across] * spacing[across], plane[down] * spacing[down]])
    width, height = (int(side) for side in np.maximum(1, np.round(size_mm / size_mm.max() * _TILE)))
    row = Image.new("RGB", (width * len(pictures), height + _CAPTION))
    draw = ImageDraw.Draw(row)
    for number, (title, picture) in enumerate(pictures.items()):
        tile = np.ascontiguousarray(np.take(picture, index, axis=axis).swapaxes(0, 1))
        row.paste(Image.fromarray(tile).resize((width, height)), (number * width, _CAPTION))
        draw.text((number * width + 4, 3), title, fill=(255, 255, 255))
    return row


def _grey(unit: Volume) -> Slice:
    grey = np.round(np.clip(unit, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _difference(unit: Volume, full: float) -> Slice:
    share = np.clip(unit / full, -1, 1)
    colour = np.stack([np.maximum(share, 0), np.zeros_like(share), np.maximum(-share, 0)], axis=-1)
    return np.asarray(np.round(colour * 255), dtype=np.uint8)
