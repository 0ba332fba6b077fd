"""A picture to judge a prediction by: source, prediction, truth and their difference, side by side."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from medgen.case import Result
from medgen.errors import GeometryError
from medgen.metrics.synthesis import RANGE_PERCENTILE, foreground_mask, match_affine
from medgen.write.atomic import atomic_write

Volume = npt.NDArray[np.float32]
Slice = npt.NDArray[np.uint8]

_TILE = 320  # pixels of the longer side of a plane
_CAPTION = 18
_DIFFERENCE_SHARE = 0.5  # of the data range is full colour


def write_comparison(result: Result, truth: Volume, path: Path) -> None:
    """Writes two planes through the middle of the foreground, thin slices first; brightness matched as the metric does.

    Red is where the prediction is too bright, blue where it is too dark.

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
    mask = foreground_mask(result.source, truth)
    scale, offset = match_affine(result.image[mask], truth[mask])
    top = float(np.percentile(truth[mask], RANGE_PERCENTILE))
    matched = (scale * result.image + offset) / top
    volumes = {
        "source": _grey(result.source / np.percentile(result.source[mask], RANGE_PERCENTILE)),
        result.kind.description: _grey(matched),
        "truth": _grey(truth / top),
        f"difference, +-{_DIFFERENCE_SHARE:.0%} of range": _difference((matched - truth / top) * mask),
    }
    centre = [round(float(np.mean(places))) for places in np.nonzero(mask)]
    spacing, codes = result.grid.spacing_mm, result.grid.codes
    axes = sorted(range(3), key=lambda axis: (-round(spacing[axis], 1), -_rank(codes[axis])))[:2]
    rows = [_row(volumes, axis, centre[axis], result) for axis in axes]
    width = max(row.width for row in rows)
    page = Image.new("RGB", (width, sum(row.height for row in rows)))
    for index, row in enumerate(rows):
        page.paste(row, (0, sum(above.height for above in rows[:index])))
    with atomic_write(path) as part:
        page.save(part, format="PNG")


def _row(volumes: dict[str, Slice], axis: int, index: int, result: Result) -> Image.Image:
    tiles = [_tile(np.take(volume, index, axis=axis), axis, result) for volume in volumes.values()]
    width, height = tiles[0].size
    row = Image.new("RGB", (width * len(tiles), height + _CAPTION))
    draw = ImageDraw.Draw(row)
    for number, (title, tile) in enumerate(zip(volumes, tiles, strict=True)):
        row.paste(tile, (number * width, _CAPTION))
        draw.text((number * width + 4, 3), title, fill=(255, 255, 255))
    return row


def _tile(plane: Slice, axis: int, result: Result) -> Image.Image:
    """Turns a plane so that head or face is up, and the patient's right or face on the left; in true proportions."""
    across, up = (other for other in range(3) if other != axis)
    codes = result.grid.codes
    if _rank(codes[across]) > _rank(codes[up]):
        across, up, plane = up, across, plane.swapaxes(0, 1)
    plane = plane[::-1] if codes[across] in "RA" else plane
    plane = plane[:, ::-1] if codes[up] in "AS" else plane
    spacing = result.grid.spacing_mm
    size = np.array([plane.shape[0] * spacing[across], plane.shape[1] * spacing[up]])
    width, height = np.maximum(1, np.round(size / size.max() * _TILE)).astype(int)
    return Image.fromarray(np.ascontiguousarray(plane.swapaxes(0, 1))).resize((int(width), int(height)))


def _rank(code: str) -> int:
    return {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}[code]


def _grey(unit: Volume) -> Slice:
    grey = np.round(np.clip(unit, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _difference(unit: Volume) -> Slice:
    share = np.clip(unit / _DIFFERENCE_SHARE, -1, 1)
    colour = np.stack([np.maximum(share, 0), np.zeros_like(share), np.maximum(-share, 0)], axis=-1)
    return np.asarray(np.round(colour * 255), dtype=np.uint8)
