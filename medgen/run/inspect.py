"""What is in an input, what a bundle would take of it, and what would be refused: looks, and starts nothing."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgen.case import Case
from medgen.errors import InputError
from medgen.read.discover import find_cases
from medgen.run.catalog import find_bundle
from medgen.run.metadata import read_metadata
from medgen.run.select import Filters, SeriesRule, select_cases


def inspect_input(
    source: Path, *, bundle: str = "", allow_irregular: bool = False, voxels: bool = False
) -> list[dict[str, Any]]:
    """Describes every case of an input.

    Args:
        source: a file, a folder, a list or a manifest.
        bundle: name or folder; its choice among the series of a study is then shown, and pictures if it takes them.
        allow_irregular: show the grid that an irregular series would be resampled to, instead of refusing it.
        voxels: read every volume too, which finds NaN, truncated files and missing codecs.

    Returns:
        one dictionary a case: `where` (relative to the input), `kind`, `modality`, `description`, `grid`, `shape`,
        `spacing_mm`, `orientation`, `files`, `flags`, `verdict` (`take`, `skip` or `refuse`) and its `reason`.

    Raises:
        NoInputError: there is no such input, or a list cannot be used.
        BundleError: there is no such bundle.
    """
    metadata = read_metadata(find_bundle(bundle).folder) if bundle else None
    cases: Sequence[Case] = find_cases(
        source,
        salt=secrets.token_bytes(16),
        allow_irregular=allow_irregular,
        modality=metadata.modality_in if metadata else "",
    )
    if metadata:
        cases = select_cases(cases, SeriesRule.from_metadata(metadata.fields), Filters())
    if voxels:
        cases = [_read(case, allow_irregular) for case in cases]
    return [_describe(case) for case in cases]


def _read(case: Case, allow_irregular: bool) -> Case:
    from medgen.read.reader import flags_of, read_image  # noqa: PLC0415 - brings torch, which headers alone do not need

    if case.excluded or case.refused:
        return case
    try:
        image = read_image(case, allow_irregular=allow_irregular)
    except InputError as error:
        return replace(case, refused=str(error))
    return replace(case, flags=flags_of(image))


def _describe(case: Case) -> dict[str, Any]:
    grid = case.grid
    verdict = "skip" if case.excluded else "refuse" if case.refused else "take"
    return {
        "where": str(case.relative),
        "kind": case.kind,
        "modality": case.modality,
        "description": " ".join(filter(None, (case.modality or case.kind, case.description))),
        "grid": grid.describe() if grid else "",
        "shape": list(grid.shape) if grid else None,
        "spacing_mm": [round(mm, 4) for mm in grid.spacing_mm] if grid else None,
        "orientation": grid.codes if grid else "",
        "files": len(case.files),
        "flags": list(case.flags),
        "verdict": verdict,
        "reason": case.excluded or case.refused,
    }
