"""A contact sheet: a row of pictures a case, to watch a training by."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from medgen.write.atomic import atomic_write

_TILE, _TITLE = 192, 16


def write_sheet(rows: Sequence[Sequence[npt.NDArray[np.float32]]], titles: Sequence[str], path: Path) -> None:
    """Writes the middle axial slice of volumes `(X, Y, Z)` in RAS, one case a row, as a PNG.

    The first volume of a row is scaled to its own range, the others to that of the last (the truth), so that a wrong
    brightness shows.

    Args:
        rows: of as many volumes as there are titles.
        titles: of the columns.
        path: of the PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    page = Image.new("L", (_TILE * len(titles), _TITLE + _TILE * len(rows)))
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        draw.text((column * _TILE + 4, 2), title, fill=255)
    for number, row in enumerate(rows):
        for column, volume in enumerate(row):
            tile = _tile(volume, volume if column == 0 else row[-1])
            page.paste(tile, (column * _TILE, _TITLE + number * _TILE))
    with atomic_write(path) as part:
        page.save(part, format="PNG")


def _tile(volume: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> Image.Image:
    low, high = np.percentile(scale, [1, 99.5])
    # x to the right of the picture is the patient's left, y down is the back, as radiologists look at it.
    plane = volume[::-1, ::-1, volume.shape[2] // 2].T
    grey = np.clip((plane - low) / max(high - low, 1e-12), 0, 1) * 255
    return Image.fromarray(grey.astype(np.uint8)).resize((_TILE, _TILE))
