"""The JSON beside a result: what it is, what made it, and from what; enough to make it again, and nobody's name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import medgen
from medgen.case import Findings, Result
from medgen.write.atomic import atomic_text


def write_sidecar(result: Result, path: Path, outputs: Mapping[str, str]) -> None:
    """Writes the sidecar of a result.

    Field names that BIDS knows are spelled as there (`Description`, `Sources`, `GeneratedBy`); the rest is medgen's.

    Args:
        result: what was written.
        path: of the JSON file.
        outputs: SHA-256 of each output by its name beside the sidecar.

    Raises:
        OutputError: the file cannot be written.
    """
    atomic_text(path, json.dumps(sidecar(result, outputs), indent=2, ensure_ascii=False, default=str) + "\n")


def sidecar(result: Result, outputs: Mapping[str, str]) -> dict[str, Any]:
    """Returns the content of the sidecar as plain JSON types."""
    made, grid = result.provenance, result.grid
    return {
        "Description": result.kind.description,
        "Synthetic": result.kind.synthetic,
        "IntendedUse": "Research. Not a medical device, not for diagnosis.",
        "Modality": result.kind.modality,
        "Units": result.kind.unit,
        "Sources": [result.case.name],
        "GeneratedBy": [
            {"Name": "medgen", "Version": medgen.__version__},
            {"Name": made.bundle, "Version": made.bundle_version},
        ],
        "Flags": list(result.flags),
        "Grid": {
            "Shape": list(grid.shape),
            "SpacingMm": [round(step, 6) for step in grid.spacing_mm],
            "Orientation": grid.codes,
            "Affine": grid.affine.tolist(),
        },
        **({"Findings": _findings(result.findings)} if result.findings else {}),
        "Outputs": dict(outputs),
        "Provenance": made.to_json(),
    }


def _findings(findings: Findings) -> dict[str, Any]:
    return {"Score": findings.score, "PScan": findings.p_scan, "Reference": findings.reference}
