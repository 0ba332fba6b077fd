"""The regions of a scored scan as a table."""

import csv
import io
from pathlib import Path

from medgen.case import Findings
from medgen.write.atomic import atomic_text

COLUMNS = ("region", "score", "p", "volume_ml", "peak_r_mm", "peak_a_mm", "peak_s_mm")


def write_regions(findings: Findings, path: Path) -> None:
    """Writes a row for the scan and one for each region, the most abnormal first; p is empty where there is none.

    The scan's p is against simulated scans, a region's against healthy tissue. Peaks are RAS+ [mm] as the input's
    header states its space.

    Raises:
        OutputError: the file cannot be written.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerow(["whole scan", _number(findings.score), _number(findings.p_simulated), "", "", "", ""])
    for region in findings.regions:
        peak = [f"{place:.1f}" for place in region.peak_mm]
        writer.writerow([region.name, _number(region.score), _number(region.p), f"{region.volume_ml:.1f}", *peak])
    writer.writerow([f"# {findings.reference}"])
    atomic_text(path, stream.getvalue())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
