"""Points in the plane with their names, as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from medgen.write.atomic import atomic_write
from medgen.write.preview import font

_SIDE, _MARGIN, _DOT = 720, 70, 6


_COLOURS = ((30, 90, 170), (200, 60, 40), (40, 150, 70), (200, 140, 20), (130, 70, 170), (90, 90, 90))


def write_scatter(
    places: npt.NDArray[np.float64], names: Sequence[str], axes: Sequence[str], path: Path, kinds: Sequence[str] = ()
) -> None:
    """Writes points `(N, 2)` as a PNG; both axes have one scale, so that distances can be compared.

    Args:
        places: of the points.
        names: of the points.
        axes: what runs to the right, and what up.
        path: of the PNG.
        kinds: of the points, each kind in a colour that a legend names; none by default.

    Raises:
        OutputError: the file cannot be written.
    """
    page = Image.new("RGB", (_SIDE, _SIDE), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    middle = (places.max(axis=0) + places.min(axis=0)) / 2
    reach = max(float(np.ptp(places, axis=0).max()), 1e-12)
    scale = (_SIDE - 2 * _MARGIN) / reach
    draw.rectangle([_MARGIN - 20, _MARGIN - 20, _SIDE - _MARGIN + 20, _SIDE - _MARGIN + 20], outline=(200, 200, 200))
    known = sorted(set(kinds))
    colours = [_COLOURS[known.index(kind) % len(_COLOURS)] for kind in kinds] or [_COLOURS[0]] * len(names)
    for (right, up), name, colour in zip((places - middle) * scale, names, colours, strict=True):
        x, y = _SIDE / 2 + right, _SIDE / 2 - up
        draw.ellipse([x - _DOT, y - _DOT, x + _DOT, y + _DOT], fill=colour)
        draw.text((x + _DOT + 3, y - _DOT - 3), name, fill=(60, 60, 60), font=font())
    draw.text((_MARGIN - 20, _SIDE - _MARGIN + 26), axes[0], fill=(0, 0, 0), font=font())
    draw.text((_MARGIN - 20, _MARGIN - 42), axes[1] if len(axes) > 1 else "", fill=(0, 0, 0), font=font())
    for number, kind in enumerate(known):
        x, y = _MARGIN - 10 + 120 * (number % 5), _MARGIN - 22 - 18 * (number // 5)
        draw.ellipse([x - _DOT, y - _DOT, x + _DOT, y + _DOT], fill=_COLOURS[number % len(_COLOURS)])
        draw.text((x + _DOT + 4, y - _DOT - 3), kind, fill=(60, 60, 60), font=font())
    with atomic_write(path) as part:
        page.save(part, format="PNG")
