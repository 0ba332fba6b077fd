"""The seconds of a scan as bars, as a picture."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from medgen.write.preview import font
from race.table import per_scan
from race.timed import median

_WIDTH, _BAR, _LABEL, _MARGIN = 900, 26, 240, 20
_MONAI, _MEDGEN, _INK = (150, 150, 150), (30, 90, 170), (30, 30, 30)


def write_chart(contests: list[dict[str, Any]], path: Path) -> None:
    """Draws a group of bars a contest, each to its own scale; nothing where nothing was timed."""
    groups = []
    for contest in contests:
        times = [(arm["name"], per_scan(arm, contest["volumes"])) for arm in contest["arms"]]
        groups.append((contest["name"], [(name, median(values)) for name, values in times if values]))
    groups = [(title, bars) for title, bars in groups if bars]
    if not groups:
        return
    height = _MARGIN + sum(_BAR * (len(bars) + 2) for _, bars in groups)
    page = Image.new("RGB", (_WIDTH, height), (255, 255, 255))
    draw, y = ImageDraw.Draw(page), _MARGIN
    for title, bars in groups:
        draw.text((_MARGIN, y), f"{title}: seconds a scan", fill=_INK, font=font())
        y += _BAR
        longest = max(1e-9, *(seconds for _, seconds in bars))
        for name, seconds in bars:
            right = _LABEL + max(seconds, 0) / longest * (_WIDTH - _LABEL - 4 * _MARGIN)
            draw.rectangle([_LABEL, y + 3, right, y + _BAR - 5], fill=_MEDGEN if name.startswith("medgen") else _MONAI)
            draw.text((_MARGIN, y + 3), name, fill=_INK, font=font())
            draw.text((right + 6, y + 3), f"{seconds:.2f}", fill=_INK, font=font())
            y += _BAR
        y += _BAR
    page.save(path)
