"""The two nouns that cross rooms: a `Case` goes in, a `Result` comes out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt

from medgen.geometry import Grid
from medgen.provenance import Provenance

Kind = Literal["nifti", "dicom", "picture"]


@dataclass(frozen=True)
class Case:
    """One volume to work on, found but not yet read.

    Attributes:
        name: what records, logs and file names call it. For NIfTI and pictures the path relative to the input (or a
            hash of that path); for DICOM always `dicom-` and a salted hash of its SeriesInstanceUID. Unique within a
            run.
        kind: the format it came in; `"picture"` is a B-scan, or a stack of them, as JPEG, PNG or TIFF.
        files: the files that make it up, absolute; for DICOM in order along the slice normal (one file if multi-frame),
            for pictures in the order of the B-scans.
        stem: where its results go relative to the output folder, without extension; mirrors the input.
        relative: its path relative to the input. It may hold a patient's name: keep it out of records, logs and file
            names.
        extension: of the input file, `".nii"`, `".nii.gz"`, `".dcm"` or a picture's.
        modality: DICOM modality where the file says it, else "".
        study: its StudyInstanceUID where there is one, to choose among the series of a study; keep it out of records.
        volume: which one, when one multi-frame file holds several volumes, else "".
        description: in a few words what the headers say it is (never who): type, sequence, echo.
        grid: its lattice where the headers give it.
        excluded: the rule that leaves it out ("localizer"), else "". Recorded as `skipped`.
        refused: why it cannot be used, known from the headers alone, else "". Recorded as `failed` at stage `read`.
        spacing_um: of a picture's pixels, where a manifest states it: lateral, axial and, if stated too, between
            B-scans `[um]`; empty where nothing does.
        flags: what a reader should know, such as `"irregular-spacing"`.
    """

    name: str
    kind: Kind
    files: tuple[Path, ...]
    stem: PurePosixPath
    relative: PurePosixPath
    extension: str
    modality: str = ""
    study: str = ""
    volume: str = ""
    description: str = ""
    grid: Grid | None = None
    excluded: str = ""
    refused: str = ""
    spacing_um: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutputKind:
    """What a bundle makes, in the field's terms.

    Attributes:
        suffix: BIDS suffix of the result, such as `"T2w"`, `"CT"`.
        modality: DICOM modality of the result, `"MR"`, `"CT"` or `"OPT"`.
        description: one line for a series description and a caption, such as `"Synthetic T2-weighted"`.
        unit: `"HU"`, `"label"`, `"score"` (a map of scores) or `"arbitrary"`.
        process: one word for what it is: `"synthetic"`, or what was done to a scan that stays one, such as
            `"denoised"`.
    """

    suffix: str
    modality: str
    description: str
    unit: str = "arbitrary"
    process: str = "synthetic"

    @property
    def synthetic(self) -> bool:
        """Returns whether it shows what no scanner measured."""
        return self.process == "synthetic"


@dataclass(frozen=True)
class RegionScore:
    """How abnormal one region of a scan is.

    Attributes:
        name: which one, in the patient's own directions.
        score: of the map in it, larger is less normal.
        volume_ml: of the region, as far as it was looked at.
        peak_mm: where the map is highest, RAS+ as the input's header states it.
        evidence: of the map that is comparable between scans, in median absolute deviations above the scan's median
            region; what p rests on. NaN where the scan has too few regions.
        p: the share of healthy regions with as much evidence or more, (1 + k) / (n + 1); None without a reference.
    """

    name: str
    score: float
    volume_ml: float
    peak_mm: tuple[float, float, float]
    evidence: float
    p: float | None = None


@dataclass(frozen=True)
class Findings:
    """What was scored in a scan, beside the map of its voxels.

    Attributes:
        score: of the whole scan, larger is less normal; None where it would mean nothing.
        regions: the most abnormal first.
        p_scan: the share of healthy scans of the reference that score as much or more; None without one.
        reference: in words, what the p-values rest on, or why there are none.
    """

    score: float | None
    regions: tuple[RegionScore, ...]
    p_scan: float | None = None
    reference: str = ""


@dataclass(frozen=True, eq=False)
class Result:
    """One finished volume, in output units on the grid of its input, not yet written.

    Attributes:
        case: what it was made from.
        kind: what it is.
        image: voxels `(X, Y, Z)`, float32, in the units of `kind.unit`.
        source: the input voxels `(X, Y, Z)` on the same grid, for the preview.
        grid: the lattice of both; the input's own, or the regular one it was resampled to (then flagged `regridded`).
        provenance: who made it.
        flags: quality flags, such as `"regridded"`, `"input-contrast"`.
        seconds: time by stage `[s]`.
        findings: of a map of scores, what it amounts to; None of any other image.
    """

    case: Case
    kind: OutputKind
    image: npt.NDArray[np.float32]
    source: npt.NDArray[np.float32]
    grid: Grid
    provenance: Provenance
    flags: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    findings: Findings | None = None
