"""A picture of a result beside its input, to see at a glance whether it went wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from medgen.case import Result
from medgen.geometry import Grid, orientation_codes
from medgen.write.atomic import atomic_write

Volume = npt.NDArray[np.float32]

_SIDE = 300  # pixels of the longest edge of the volume
_GAP = 6
_TITLE_HEIGHT = 22
_CAPTION_HEIGHT = 44
_FONT_SIZE = 14
_LETTERS = (120, 190, 255)
_SOFT_TISSUE_HU = (-160.0, 240.0)
_WINDOW_PERCENTILES = (1.0, 99.5)
_WINDOW_SAMPLES = 200_000
_FOREGROUND = 0.15  # of the upper end of the window, above which a voxel is part of the patient
# For each view: the axis that it looks along, the axes across and down the picture, and the letters at its edges
# (left, right, top, bottom), of a volume whose axes run to the left, back and feet.
VIEWS = (
    (2, 0, 1, "RLAP"),
    (1, 0, 2, "RLSI"),
    (0, 1, 2, "APSI"),
)


def write_preview(result: Result, path: Path) -> None:
    """Writes a PNG: axial, coronal and sagittal planes through the middle of the patient, input above, result below.

    Planes are those of the grid, in true proportions and as a radiologist looks at them (the patient's right on the
    left); letters at the edges name the nearest directions. The caption names the case, not the patient.

    Raises:
        OutputError: the file cannot be written.
    """
    source, spacing = to_lpi(result.source, result.grid)
    image, _ = to_lpi(result.image, result.grid)
    window = window_of(source, "" if result.kind.synthetic else result.kind.unit)
    centre = _middle(source, window)
    rows = [
        _row(source, spacing, centre, window, "input"),
        _row(image, spacing, centre, window_of(image, result.kind.unit), result.kind.description),
    ]
    write_page(rows, result, path)


def write_page(rows: Sequence[Image.Image], result: Result, path: Path, lattice: str = "") -> None:
    """Writes rows of one height below each other, and the caption.

    Args:
        rows: of one size.
        result: what they show.
        path: where to.
        lattice: how the caption calls its grid, if not in the directions of the patient.

    Raises:
        OutputError: the file cannot be written.
    """
    height = rows[0].height + _GAP
    page = Image.new("RGB", (rows[0].width, height * len(rows) + _CAPTION_HEIGHT))
    for number, row in enumerate(rows):
        page.paste(row, (0, number * height))
    _write_caption(page, result, lattice or result.grid.describe())
    with atomic_write(path) as part:
        page.save(part, format="PNG")


def to_lpi(volume: npt.NDArray[Any], grid: Grid) -> tuple[npt.NDArray[Any], tuple[float, ...]]:
    """Returns a view of the volume whose axes run to the left, back and feet, as pictures are looked at.

    Args:
        volume: `(X, Y, Z)`.
        grid: it lies on.

    Returns:
        the view, and the spacing of its axes `[mm]`.
    """
    codes = orientation_codes(grid.affine)
    order = [next(axis for axis, code in enumerate(codes) if code in pair) for pair in ("LR", "PA", "IS")]
    turned = volume.transpose(order)
    flips = tuple(slice(None, None, 1 if codes[axis] in "LPI" else -1) for axis in order)
    return turned[flips], tuple(grid.spacing_mm[axis] for axis in order)


def window_of(volume: Volume, unit: str) -> tuple[float, float]:
    """Returns the values that become black and white: soft tissue for CT, else percentiles without the background."""
    if unit == "HU":
        return _SOFT_TISSUE_HU
    step = max(1, round((volume.size / _WINDOW_SAMPLES) ** (1 / 3)))
    sample = volume[::step, ::step, ::step]
    low, high = np.percentile(sample[sample != sample.min()] if np.ptp(sample) > 0 else sample, _WINDOW_PERCENTILES)
    return float(low), float(max(high, low + 1e-6))


def _middle(volume: Volume, window: tuple[float, float]) -> tuple[int, ...]:
    """The voxel in the middle of the patient's extent along each axis."""
    inside = volume > window[0] + _FOREGROUND * (window[1] - window[0])
    middle = []
    for axis in range(3):
        profile = inside.sum(axis=tuple(other for other in range(3) if other != axis))
        places = np.flatnonzero(profile > 0.1 * profile.max())
        middle.append(int((places[0] + places[-1]) // 2) if len(places) else volume.shape[axis] // 2)
    return tuple(middle)


def _row(
    volume: Volume, spacing: tuple[float, ...], centre: tuple[int, ...], window: tuple[float, float], title: str
) -> Image.Image:
    """The three views of one volume, side by side on tiles of one height."""
    size_mm = [count * step for count, step in zip(volume.shape, spacing, strict=True)]
    scale = _SIDE / max(size_mm)
    pictures = []
    for along, across, down, letters in VIEWS:
        plane = np.take(volume, centre[along], axis=along).T
        grey = np.clip((plane - window[0]) / (window[1] - window[0]), 0, 1) * 255
        size = (max(1, round(size_mm[across] * scale)), max(1, round(size_mm[down] * scale)))
        picture = Image.fromarray(np.rint(grey).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        pictures.append(lettered(picture.convert("RGB"), letters))
    height = max(picture.height for picture in pictures)
    row = Image.new("RGB", (sum(picture.width + _GAP for picture in pictures) - _GAP, _TITLE_HEIGHT + height))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, _TITLE_HEIGHT + (height - picture.height) // 2))
        left += picture.width + _GAP
    ImageDraw.Draw(row).text((4, 3), title, fill=(255, 220, 120), font=font())
    return row


def lettered(picture: Image.Image, letters: str) -> Image.Image:
    """Writes the directions at the edges of a view: left, right, top, bottom."""
    draw = ImageDraw.Draw(picture)
    wide, high = picture.size
    places = ((3, high // 2, "lm"), (wide - 3, high // 2, "rm"), (wide // 2, 3, "mt"), (wide // 2, high - 3, "mb"))
    for letter, (x, y, anchor) in zip(letters, places, strict=True):
        draw.text((x, y), letter, fill=_LETTERS, font=font(), anchor=anchor)
    return picture


def _write_caption(page: Image.Image, result: Result, lattice: str) -> None:
    """Writes at the foot of a page whose result it shows, by what, with which flags; never who the patient is."""
    made = result.provenance
    draw = ImageDraw.Draw(page)
    top = page.height - _CAPTION_HEIGHT + 3
    flags = f"  [{', '.join(result.flags)}]" if result.flags else ""
    lines = (
        f"{result.case.name}  {lattice}{flags}",
        f"{made.bundle} {made.bundle_version}: {result.kind.process}, not for diagnosis",
    )
    for number, line in enumerate(lines):
        fitting = line
        while fitting and draw.textlength(fitting, font=font()) > page.width - 8:
            fitting = fitting[1:]  # the end of a path says more than its beginning
        draw.text((4, top + number * 19), fitting, fill=(200, 200, 200), font=font())


def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns the font of all pictures."""
    return ImageFont.load_default(_FONT_SIZE)
