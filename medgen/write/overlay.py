"""A picture of a scored scan: three planes through the most abnormal place, the map above the image in colour."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from medgen.case import RegionScore, Result
from medgen.write.preview import VIEWS, font, lettered, to_lpi, window_of, write_page

Volume = npt.NDArray[np.float32]

_SIDE = 300  # pixels of the longest edge of the volume
_GAP = 6
_TITLE_HEIGHT = 22
TOP = 3  # regions that are marked
_ALPHA = 0.65
# The scale of colour: nothing below the first quantile of what is scored, full colour at the second.
_FAINT, _FULL = 0.98, 0.9995
MARKS = ((255, 90, 90), (255, 190, 60), (255, 255, 120))


def write_overlay(result: Result, path: Path) -> None:
    """Writes a PNG: a row of three planes for each of the most abnormal regions, image left and map over image right.

    Colour begins at the 98th percentile of the scores in this scan and is full at the 99.95th: it shows where, not how
    much; the numbers under each row, with their p-values, say how much. A cross marks the peak.

    Raises:
        OutputError: the file cannot be written.
    """
    source, spacing = to_lpi(result.source, result.grid)
    heat, _ = to_lpi(result.image, result.grid)
    window = window_of(source, "")
    unit = warmth(heat)
    regions = result.findings.regions[:TOP] if result.findings else ()
    rows = [
        _row(source, unit, spacing, window, _place(region, result), _says(number, region), MARKS[number])
        for number, region in enumerate(regions)
    ]
    if not rows:
        peak = np.unravel_index(int(heat.argmax()), heat.shape)
        rows = [_row(source, unit, spacing, window, tuple(map(int, peak)), "highest score", MARKS[0])]
    write_page(rows, result, path)


def warmth(heat: Volume) -> Volume:
    """Returns how strong the colour of each score is, 0 to 1, against all scores that are not exactly 0."""
    scored = heat[heat != 0]
    low, high = np.quantile(scored, [_FAINT, _FULL]) if scored.size else (0.0, 1.0)
    return np.asarray(np.clip((heat - low) / max(float(high - low), 1e-6), 0, 1), dtype=np.float32)


def _place(region: RegionScore, result: Result) -> tuple[int, ...]:
    """The voxel of a region's peak in the turned volume."""
    marks = np.zeros(result.grid.shape, dtype=np.bool_)
    voxel = np.linalg.inv(result.grid.affine) @ [*region.peak_mm, 1.0]
    marks[tuple(np.clip(np.rint(voxel[:3]).astype(int), 0, np.array(marks.shape) - 1))] = True
    turned, _ = to_lpi(marks, result.grid)
    return tuple(int(place) for place in np.argwhere(turned)[0])


def _says(number: int, region: RegionScore) -> str:
    x, y, z = region.peak_mm
    chance = "" if region.p is None else f", p {region.p:.2g}"
    return f"{number + 1}. {region.name}: score {region.score:.3g}{chance}, peak at R {x:.0f} A {y:.0f} S {z:.0f} mm"


def _row(
    source: Volume,
    unit: Volume,
    spacing: tuple[float, ...],
    window: tuple[float, float],
    centre: tuple[int, ...],
    title: str,
    mark: tuple[int, int, int],
) -> Image.Image:
    """The three views of the image, and under them the same with the map."""
    size_mm = [count * step for count, step in zip(source.shape, spacing, strict=True)]
    scale = _SIDE / max(size_mm)
    columns = []
    for along, across, down, letters in VIEWS:
        size = (max(1, round(size_mm[across] * scale)), max(1, round(size_mm[down] * scale)))
        grey = np.clip((np.take(source, centre[along], axis=along).T - window[0]) / (window[1] - window[0]), 0, 1)
        plain = Image.fromarray(np.rint(grey * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        hot = np.take(unit, centre[along], axis=along).T
        warm = Image.fromarray(np.rint(hot * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
        over = lettered(coloured(plain, warm), letters)
        place = tuple((centre[axis] + 0.5) * spacing[axis] * scale for axis in (across, down))
        cross(ImageDraw.Draw(over), (place[0], place[1]), mark)
        columns.append((lettered(plain.convert("RGB"), letters), over))
    height = max(picture.height for picture, _ in columns)
    width = sum(picture.width + _GAP for picture, _ in columns) - _GAP
    row = Image.new("RGB", (width, _TITLE_HEIGHT + 2 * height + _GAP))
    left = 0
    for plain_picture, over in columns:
        for level, picture in enumerate((plain_picture, over)):
            top = _TITLE_HEIGHT + level * (height + _GAP) + (height - picture.height) // 2
            row.paste(picture, (left, top))
        left += plain_picture.width + _GAP
    ImageDraw.Draw(row).text((4, 3), title, fill=mark, font=font())
    return row


def coloured(plain: Image.Image, warm: Image.Image) -> Image.Image:
    """Returns a grey picture with another over it from red to yellow, the stronger the higher."""
    grey, hot = np.asarray(plain, dtype=np.float32)[..., None], np.asarray(warm, dtype=np.float32)[..., None] / 255
    colour = np.concatenate([np.full_like(hot, 255.0), 255.0 * hot, np.zeros_like(hot)], axis=-1)
    share = _ALPHA * np.minimum(1, 2 * hot)
    return Image.fromarray(np.rint((1 - share) * grey + share * colour).astype(np.uint8))


def cross(draw: ImageDraw.ImageDraw, place: tuple[float, float], colour: tuple[int, int, int]) -> None:
    """Draws a cross around a place of a picture, open in the middle."""
    x, y = place
    for near, far in ((8, 18), (-18, -8)):
        draw.line([(x + near, y), (x + far, y)], fill=colour, width=2)
        draw.line([(x, y + near), (x, y + far)], fill=colour, width=2)
