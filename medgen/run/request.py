"""What `medgen run` is asked for, and all of a run that does not depend on what computes it: cases, ledger, report."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.case import Case, Result
from medgen.errors import MedgenError, NoInputError
from medgen.read.discover import find_cases, lost_case
from medgen.run.catalog import find_bundle
from medgen.run.cohort import run_cohort
from medgen.run.ledger import Ledger
from medgen.run.metadata import read_metadata
from medgen.run.plan import Part, plan
from medgen.run.private import make_salt, peek_salt
from medgen.run.publish import RunInfo
from medgen.run.records import COLUMNS, CaseOutcome, Record
from medgen.run.select import Filters, SeriesRule, select_cases
from medgen.run.steps import CohortSummary, Event, Options, Steps
from medgen.write.report import write_report
from medgen.write.result import FORMATS, Formats, write_result

if TYPE_CHECKING:
    from medgen.run.stage_profile import StageProfile

Listen = Callable[[Event], None]


@dataclass(frozen=True)
class RunRequest:
    """What `medgen run` was asked for.

    Attributes:
        bundle: name of an installed bundle, or a bundle's folder.
        source: a file, folder, list or manifest.
        output: folder for the results.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`.
        backend: what computes the network; see `medgen.run.backend.with_backend`.
        precision: of its arithmetic.
        formats: `"same"` as the input, `"nifti"`, `"dicom"` or `"both"`.
        part: which part of the cohort.
        jobs: cases read, and written, at a time.
        limit: at most so many cases; 0 for all.
        filters: which of the series found.
        overwrite: do finished cases again.
        preview: write a picture beside every result.
        profile: write where the time went, into `profile` in the output folder.
        allow_irregular: resample irregular series instead of refusing them.
        hash_paths: hash the names of NIfTI files too.
        fail_fast: stop at the first failure.
        trust: run the code of a bundle that did not come with medgen.
        changes: `key=value` of ids in the bundle's inference config.
        command: the command line, for the record.
        among: only these files of the folder `source`; None for all.
        lost: series that belong to the cohort and could not be had: what their names follow from, and the reason.
        arriving: more will come, so that it is no error if rules leave out all that is there.
    """

    bundle: str
    source: Path
    output: Path
    device: str = "auto"
    backend: str = "auto"
    precision: str = "auto"
    formats: Formats = "same"
    part: Part = field(default_factory=Part)
    jobs: int = 1
    limit: int = 0
    filters: Filters = field(default_factory=Filters)
    overwrite: bool = False
    preview: bool = True
    profile: bool = False
    allow_irregular: bool = False
    hash_paths: bool = False
    fail_fast: bool = False
    trust: bool = False
    changes: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    among: tuple[Path, ...] | None = None
    lost: tuple[tuple[str, str], ...] = ()
    arriving: bool = False


def plan_job(request: RunRequest) -> list[Case]:
    """Returns the cases that a run would take, with the reason in those it would leave out or refuse. Writes nothing.

    Raises:
        MedgenError: the run could not start.
    """
    return plan(_find(request, peek_salt(request.output)), request.part, request.limit or None)


def require_startable(request: RunRequest) -> None:
    """Finds out what costs nothing to find out: is there such a bundle, and is there anything to do?

    Raises:
        MedgenError: the run could not start.
    """
    find_bundle(request.bundle)
    if request.formats not in FORMATS:
        raise MedgenError(f"expected --format {', '.join(FORMATS)}, got {request.formats!r}")
    _require_usable(_find(request, peek_salt(request.output)), arriving=request.arriving)


def settings_of(request: RunRequest, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run's recipe: those of the bundle, and what was asked for that changes an output."""
    return {
        **settings,
        "backend": request.backend,  # as asked for: what `auto` took may differ between the machines of one run
        "precision": request.precision,
        "format": request.formats,
        "preview": request.preview,
        "allow_irregular": request.allow_irregular,
    }


def run_steps(request: RunRequest, info: RunInfo, steps: Steps, listen: Listen) -> CohortSummary:
    """Takes the cohort of a request through the steps, and writes `cases.csv`, `run.json` and `report.html`.

    Raises:
        MedgenError: the run could not start.
    """
    options = Options(request.jobs, request.overwrite, request.fail_fast, request.limit or None, listen)
    cases = _find(request, make_salt(request.output))
    profile = _profile(request)
    with Ledger(request.output, info) as ledger:
        try:
            return run_cohort(cases, profile.around(steps) if profile else steps, ledger, options)
        finally:
            if profile:
                profile.write(request.output / "profile")
            rows = [_report_row(record) for record in ledger.records()]
            write_report(request.output / "report.html", info.to_json(), rows)


def _profile(request: RunRequest) -> "StageProfile | None":
    if not request.profile:
        return None
    from medgen.run.stage_profile import StageProfile  # noqa: PLC0415 - few runs ask for it

    return StageProfile()


def _report_row(record: Record) -> dict[str, str]:
    pictures = [path for path in record.files if path.endswith(".png")]
    return {**dict(zip(COLUMNS, record.row(), strict=True)), "preview": pictures[0] if pictures else ""}


def _find(request: RunRequest, salt: bytes) -> list[Case]:
    metadata = read_metadata(find_bundle(request.bundle).folder)
    cases = find_cases(
        request.source,
        salt=salt,
        hash_paths=request.hash_paths,
        allow_irregular=request.allow_irregular,
        modality=metadata.modality_in,
        among=request.among,
    )
    lost = [lost_case(series, reason, salt=salt) for series, reason in request.lost]
    rule = SeriesRule.from_metadata(metadata.fields, request.changes)
    return [*select_cases(cases, rule, request.filters), *lost]


def _require_usable(cases: Sequence[Case], *, arriving: bool) -> None:
    if not cases:
        raise NoInputError("expected images as input (NIfTI, DICOM; of eyes also pictures), found none; check the path")
    if all(case.excluded for case in cases) and not arriving:
        reasons = Counter(case.excluded for case in cases)
        said = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        raise NoInputError(
            f"expected a case to work on, but rules leave out all {len(cases)}: {said}; try `medgen inspect`"
        )


def command_of(request: RunRequest) -> tuple[str, ...]:
    """Returns the command line as it may be recorded; whoever hides the names of files hides their folder too."""
    if not request.hash_paths:
        return request.command
    return tuple("INPUT" if Path(word) == request.source else word for word in request.command)


def write_outcome(request: RunRequest, result: Result) -> CaseOutcome:
    """Writes all files of a result, and returns what is recorded of it.

    Raises:
        OutputError: it cannot be written.
    """
    written = write_result(result, request.output, request.formats, preview=request.preview)
    score = result.findings.score if result.findings else None
    return CaseOutcome(written.output, written.files, written.sha256, result.grid, result.flags, score)
