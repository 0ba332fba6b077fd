"""A picture of scored B-scans of an eye: the scan, and under it the same with the map in colour, in its own pixels."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from medgen.case import RegionScore, Result
from medgen.read.ophthalmic import SPACING_FLAG
from medgen.write.overlay import MARKS, TOP, coloured, cross, warmth
from medgen.write.preview import font, window_of, write_page

Volume = npt.NDArray[np.float32]

_SHOWN = 3  # B-scans of a volume
_WIDE = 640  # of all B-scans beside each other, each at least half of it
_GAP = 6
_LINE = 20
_TOP_SHARE = 1e-3  # of a B-scan's pixels, whose mean says which are shown
_TITLE = (255, 220, 120)


def write_bscans(result: Result, path: Path) -> None:
    """Writes a PNG: the B-scan above, the same with the map over it below; of a volume the three with the highest map.

    Pixels are shown square, whatever their size, as OCT software does at its 1:1 setting. A numbered cross marks the
    peak of each of the most abnormal regions where its B-scan is shown; all are named under the picture with the
    column, row and B-scan of their peak, counted from 0. Colour is scaled as in `medgen.write.overlay`.

    Raises:
        OutputError: the file cannot be written.
    """
    heat, warm = result.image, warmth(result.image)
    window = window_of(result.source, "")
    regions = result.findings.regions[:TOP] if result.findings else ()
    peaks = [_pixel(region, result) for region in regions]
    if not peaks:
        peaks = [tuple(int(n) for n in np.unravel_index(int(heat.argmax()), heat.shape))]
    shown = _highest(heat)
    wide = max(_WIDE // len(shown), _WIDE // 2)
    parts = []
    for number in shown:
        marks = {rank: (peak[0], peak[1]) for rank, peak in enumerate(peaks) if peak[2] == number}
        title = f"B-scan {number} (0 to {heat.shape[2] - 1})" if heat.shape[2] > 1 else "B-scan"
        picture = _pair(result.source[:, :, number], warm[:, :, number], window, wide, marks)
        parts.append(_titled(picture, title))
    said = [_says_place(peak, heat.shape[2] > 1) for peak in peaks]
    said = [_says(number, region, said[number]) for number, region in enumerate(regions)] or said
    write_page([_with_lines(_beside(parts), said)], result, path, _lattice(result))


def _highest(heat: Volume) -> list[int]:
    """The B-scans with the highest mean of their top 0.1 %, in the order of the volume."""
    flat = heat.reshape(-1, heat.shape[2])
    count = max(1, round(_TOP_SHARE * len(flat)))
    means = np.partition(flat, -count, axis=0)[-count:].mean(axis=0)
    return sorted(np.argsort(-means, kind="stable")[:_SHOWN].tolist())


def _pixel(region: RegionScore, result: Result) -> tuple[int, ...]:
    """Column, row and B-scan of a region's peak."""
    place = np.rint(np.linalg.inv(result.grid.affine) @ [*region.peak_mm, 1.0])[:3].astype(int)
    return tuple(np.clip(place, 0, np.array(result.grid.shape) - 1).tolist())


def _says(number: int, region: RegionScore, place: str) -> str:
    chance = "" if region.p is None else f", p {region.p:.2g}"
    return f"{number + 1}. {region.name}: score {region.score:.3g}{chance}, {place}"


def _says_place(peak: tuple[int, ...], several: bool) -> str:
    return f"peak at column {peak[0]}, row {peak[1]}{f', B-scan {peak[2]}' if several else ''}"


def _lattice(result: Result) -> str:
    """The size of the volume in pixels, and of a pixel where it is known."""
    shape = " x ".join(str(n) for n in result.grid.shape)
    if SPACING_FLAG in result.flags:
        return f"{shape} pixels"
    return f"{shape} pixels of {' x '.join(f'{1000 * mm:.3g}' for mm in result.grid.spacing_mm)} um"


def _pair(
    source: npt.NDArray[np.float32],
    warm: npt.NDArray[np.float32],
    window: tuple[float, float],
    wide: int,
    marks: dict[int, tuple[int, int]],
) -> Image.Image:
    """One B-scan `(columns, rows)`, and under it the same with its map."""
    scale = wide / source.shape[0]
    size = (wide, max(1, round(source.shape[1] * scale)))
    grey = np.clip((source.T - window[0]) / (window[1] - window[0]), 0, 1)
    plain, hot = (
        Image.fromarray(np.rint(values * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for values in (grey, warm.T)
    )
    over = coloured(plain, hot)
    draw = ImageDraw.Draw(over)
    for rank, (column, row) in marks.items():
        x, y = (column + 0.5) * scale, (row + 0.5) * scale
        cross(draw, (x, y), MARKS[rank])
        draw.text((min(x + 10, wide - 12), max(y - 22, 0)), str(rank + 1), fill=MARKS[rank], font=font())
    both = Image.new("RGB", (wide, 2 * size[1] + _GAP))
    both.paste(plain.convert("RGB"), (0, 0))
    both.paste(over, (0, size[1] + _GAP))
    return both


def _titled(picture: Image.Image, title: str) -> Image.Image:
    page = Image.new("RGB", (picture.width, picture.height + _LINE))
    ImageDraw.Draw(page).text((4, 2), title, fill=_TITLE, font=font())
    page.paste(picture, (0, _LINE))
    return page


def _beside(pictures: list[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (sum(p.width + _GAP for p in pictures) - _GAP, pictures[0].height))
    for number, picture in enumerate(pictures):
        page.paste(picture, (number * (picture.width + _GAP), 0))
    return page


def _with_lines(picture: Image.Image, lines: list[str]) -> Image.Image:
    """The picture with lines of text under it, in the colours of the marks."""
    page = Image.new("RGB", (picture.width, picture.height + _LINE * len(lines)))
    page.paste(picture, (0, 0))
    for number, line in enumerate(lines):
        ImageDraw.Draw(page).text((4, picture.height + _LINE * number + 2), line, fill=MARKS[number], font=font())
    return page
