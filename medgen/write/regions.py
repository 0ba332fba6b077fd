"""The regions of a scored scan as a table."""

import csv
import io
import math
from pathlib import Path

from medgen.case import Findings
from medgen.write.atomic import atomic_text

COLUMNS = ("region", "score", "evidence", "p", "volume_ml", "peak_r_mm", "peak_a_mm", "peak_s_mm", "reference")


def write_regions(findings: Findings, path: Path) -> None:
    """Writes a row for the scan and one for each region, the most abnormal first; p is empty where there is none.

    `score` is of the map, and ranks regions within the scan; p rests on `evidence`: of a brain in deviations above the
    scan's median region, of an eye the score itself.
    The scan's p is against healthy scans, a region's against healthy tissue; `reference` says which. The volume is
    empty where none is known.
    Peaks are RAS+ [mm] as the input's header states its space.

    Raises:
        OutputError: the file cannot be written.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    whole = ["", _number(findings.score), _number(findings.p_scan)]
    writer.writerow(["whole scan", *whole, "", "", "", "", findings.reference])
    for region in findings.regions:
        peak = [_place(place) for place in region.peak_mm]
        numbers = [_number(region.score), _number(region.evidence), _number(region.p)]
        writer.writerow(
            [region.name, *numbers, "" if math.isnan(region.volume_ml) else f"{region.volume_ml:.1f}", *peak, ""]
        )
    atomic_text(path, stream.getvalue())


def _place(mm: float) -> str:
    """One decimal, or as many up to three as there are: a pixel of an eye is some 0.01 mm."""
    short, whole = f"{mm:.1f}", f"{mm:.3f}"
    return short if float(short) == float(whole) else whole


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
