"""What is known about each case: the record that says a result can be believed, and the table people read."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

from medgen.geometry import Grid

Status = Literal["done", "failed", "skipped"]
Stage = Literal["read", "prepare", "compute", "write"]

STAGES: tuple[Stage, ...] = ("read", "prepare", "compute", "write")
COLUMNS = (
    *("case", "input", "status", "stage", "reason", "output"),
    *("grid", "spacing", "orientation"),
    *(f"seconds_{stage}" for stage in STAGES),
    *("seconds_total", "output_sha256", "flags", "score"),
)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t")
_SHOWN_SETTINGS = 3


@dataclass(frozen=True)
class Recipe:
    """What a run does to every case: whatever changes the voxels or the files that come out.

    Attributes:
        bundle: name of the bundle.
        bundle_version: its version.
        weights_sha256: of its weights.
        settings: all options that change an output (precision, window, formats, ...), as JSON types.
    """

    bundle: str
    bundle_version: str
    weights_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A recipe is compared with one that went through JSON, where a tuple has become a list.
        plain = json.loads(json.dumps(dict(self.settings), sort_keys=True))
        object.__setattr__(self, "settings", MappingProxyType(plain))

    def changes_since(self, old: "Recipe") -> list[str]:
        """Says what differs from the recipe of an earlier run, an empty list when nothing does."""
        changes = []
        if self.bundle != old.bundle:
            changes.append(f"bundle {old.bundle} -> {self.bundle}")
        if self.bundle_version != old.bundle_version:
            changes.append(f"bundle version {old.bundle_version} -> {self.bundle_version}")
        if self.weights_sha256 != old.weights_sha256:
            changes.append(f"weights {old.weights_sha256[:8]} -> {self.weights_sha256[:8]}")
        names = sorted({*self.settings, *old.settings})
        moved = [name for name in names if self.settings.get(name) != old.settings.get(name)]
        changes += [f"{name} {old.settings.get(name)} -> {self.settings.get(name)}" for name in moved[:_SHOWN_SETTINGS]]
        if len(moved) > _SHOWN_SETTINGS:
            changes.append(f"{len(moved) - _SHOWN_SETTINGS} more settings")
        return changes

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as plain JSON types."""
        return {**self.__dict__, "settings": dict(self.settings)}


@dataclass(frozen=True)
class Key:
    """What a finished case was made from; while it is the same, the case need not be done again.

    Attributes:
        input_sha256: of the input's content.
        place: keyed hash of the input's relative path, which may itself hold a patient's name.
        recipe: what was done to it.
    """

    input_sha256: str
    place: str
    recipe: Recipe

    def changes_since(self, old: "Key") -> str:
        """Says what differs from an earlier key, `"bundle version 0.1.0 -> 0.2.0"`; empty when nothing does."""
        changes = self.recipe.changes_since(old.recipe)
        if self.input_sha256 != old.input_sha256:
            changes.append("input changed")
        if self.place != old.place:
            changes.append("input moved")
        return "; ".join(changes)

    def to_json(self) -> dict[str, Any]:
        """Returns the key as plain JSON types."""
        return {"input_sha256": self.input_sha256, "place": self.place, "recipe": self.recipe.to_json()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Key":
        """Returns the key that `to_json` wrote."""
        return cls(plain["input_sha256"], plain["place"], Recipe(**plain["recipe"]))


@dataclass(frozen=True)
class CaseOutcome:
    """What the writing step hands back once every file of a case is on disk.

    Attributes:
        output: the main output, a file or a folder, relative to the output folder.
        files: everything written, relative to the output folder.
        sha256: of the main output.
        grid: the lattice it lies on.
        flags: quality flags, such as `"regridded"`.
        score: of a scored scan, larger is less normal; None of anything else, and where it would mean nothing.
    """

    output: PurePosixPath
    files: tuple[PurePosixPath, ...]
    sha256: str
    grid: Grid | None = None
    flags: tuple[str, ...] = ()
    score: float | None = None


@dataclass(frozen=True)
class Record:
    """How one case ended, as `records/<case id>.json` keeps it.

    Attributes:
        case: name of the case.
        status: how it ended; `skipped` is for what a rule left out.
        stage: where it failed.
        reason: why it failed or was left out.
        output: main output, relative to the output folder.
        output_sha256: of the main output.
        files: what this case has put into the output folder, relative path to size in bytes.
        key: what it was made from; None where nothing was read.
        input_stat: keyed hash of the input files' sizes and times, so that an unchanged input is not hashed again;
            empty where the files were too young for their times to be proof.
        grid: shape of the output, `"256x256x48"`.
        spacing: of its voxels `[mm]`, `"0.91x0.91x3"`.
        orientation: of its axes, `"LPS"`.
        seconds: working time by stage.
        flags: quality flags.
        redone: why an earlier result was made again, `"bundle version 0.1.0 -> 0.2.0"`.
        ended: when, UTC in ISO 8601.
        run: id of the process that did it.
        score: of a scored scan.
    """

    case: str
    status: Status
    stage: str = ""
    reason: str = ""
    output: str = ""
    output_sha256: str = ""
    files: Mapping[str, int] = field(default_factory=dict)
    key: Key | None = None
    input_stat: str = ""
    grid: str = ""
    spacing: str = ""
    orientation: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    redone: str = ""
    ended: str = ""
    run: str = ""
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain JSON types."""
        rounded = {stage: round(seconds, 3) for stage, seconds in self.seconds.items()}
        key = self.key.to_json() if self.key else None
        return {**self.__dict__, "key": key, "seconds": rounded, "files": dict(self.files), "flags": list(self.flags)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Record":
        """Returns the record that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: if it is none; the ledger then treats the case as never done.
        """
        key = Key.from_json(plain["key"]) if plain["key"] else None
        if plain["status"] not in ("done", "failed", "skipped"):
            raise ValueError(plain["status"])
        return cls(**{**plain, "key": key, "flags": tuple(plain["flags"])})

    def on(self, grid: Grid | None) -> "Record":
        """Returns the record with the lattice that its output lies on, or its input where there is none."""
        if grid is None:
            return self
        shape = "x".join(str(n) for n in grid.shape)
        spacing = "x".join(f"{mm:.4g}" for mm in grid.spacing_mm)
        return replace(self, grid=shape, spacing=spacing, orientation=grid.codes)

    def row(self) -> list[str]:
        """Returns the case's row of `cases.csv`, one value a column of `COLUMNS`."""
        times = [self.seconds.get(stage) for stage in STAGES]
        total = sum(self.seconds.values()) if self.seconds else None
        seconds = ["" if value is None else f"{value:.2f}" for value in (*times, total)]
        about = [self.case, self.case, self.status, self.stage, self.reason, self.output]
        end = [self.output_sha256, ";".join(self.flags), "" if self.score is None else f"{self.score:.4g}"]
        return [*about, self.grid, self.spacing, self.orientation, *seconds, *end]


def case_id(name: str) -> str:
    """Returns what a case's files in the ledger are called: 24 hex digits, safe on any file system.

    Example:
        >>> case_id("sub-01/anat/sub-01_T1w.nii.gz")
        'c5c9c8c8aca011bc37f33110'
    """
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def cases_csv(records: Iterable[Record]) -> str:
    """Returns the text of `cases.csv`, sorted by case, safe to open in a spreadsheet.

    A value that a spreadsheet would run as a formula is led by an apostrophe; a line break in one becomes a space.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in sorted(records, key=lambda record: record.case):
        *cells, score = record.row()  # a number of ours, which may be negative
        writer.writerow([*map(_cell, cells), score])
    # A file name that is not valid UTF-8 shows a question mark here; its record keeps it as it is.
    return text.getvalue().encode("utf-8", "replace").decode("utf-8")


def counts(records: Iterable[Record]) -> dict[str, int]:
    """Returns how many cases are done, failed and skipped.

    Example:
        >>> counts([Record("a", "done"), Record("b", "done"), Record("c", "failed")])
        {'done': 2, 'failed': 1, 'skipped': 0}
    """
    statuses = [record.status for record in records]
    return {status: statuses.count(status) for status in ("done", "failed", "skipped")}


def _cell(value: str) -> str:
    line = re.sub(r"[\r\n]+", " ", value)
    return f"'{line}" if line.startswith(_FORMULA_STARTS) else line
