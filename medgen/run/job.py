"""What the commands do, whole: find the cases, choose among them, open the bundle, run the cohort, write the report."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from monai.data import MetaTensor

from medgen.case import Case, Result
from medgen.errors import ManifestError, MedgenError, NoInputError
from medgen.read.bscan_cases import picture_case
from medgen.read.discover import find_cases, input_sha256
from medgen.read.manifest import Listed, datalist_from_manifest, find_data_root
from medgen.read.oct import is_picture
from medgen.read.reader import read_image
from medgen.run import predict
from medgen.run.backend import with_backend
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.catalog import find_bundle
from medgen.run.cohort import run_cohort
from medgen.run.evaluate import Evaluation, Pair, evaluate
from medgen.run.ledger import Ledger
from medgen.run.metadata import read_metadata
from medgen.run.plan import Part, plan
from medgen.run.private import make_salt, peek_salt
from medgen.run.protocol import find_protocol
from medgen.run.publish import RunInfo
from medgen.run.records import COLUMNS, CaseOutcome, Recipe, Record
from medgen.run.select import Filters, SeriesRule, select_cases
from medgen.run.steps import CohortSummary, Event, Options, Steps
from medgen.simulate.sample import write_sample
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


def plan_job(request: RunRequest) -> list[Case]:
    """Returns the cases that a run would take, with the reason in those it would leave out or refuse. Writes nothing.

    Raises:
        MedgenError: the run could not start.
    """
    return plan(_find(request, peek_salt(request.output)), request.part, request.limit or None)


def run_job(request: RunRequest, listen: Listen = lambda event: None) -> CohortSummary:
    """Runs a bundle over a cohort and writes `cases.csv`, `run.json` and `report.html` beside the results.

    Raises:
        MedgenError: the run could not start; nothing was done then.
    """
    # What costs nothing to find out comes first: is there such a bundle, and is there anything to do?
    find_bundle(request.bundle)
    if request.formats not in FORMATS:
        raise MedgenError(f"expected --format {', '.join(FORMATS)}, got {request.formats!r}")
    _require_usable(_find(request, peek_salt(request.output)))
    bundle = open_bundle(
        request.bundle,
        trust=request.trust,
        device=request.device,
        changes=request.changes,
    )
    recipe = _recipe(request, bundle)
    bundle = with_backend(
        bundle, request.backend, request.precision, lambda text: listen(Event("note", 0, 0, reason=text))
    )
    info = RunInfo(recipe, _command(request), str(bundle.device), request.part, computed_by=bundle.computed_by)
    options = Options(request.jobs, request.overwrite, request.fail_fast, request.limit or None, listen)
    cases = _find(request, make_salt(request.output))
    steps = _steps(request, bundle)
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
    )
    return select_cases(cases, SeriesRule.from_metadata(metadata.fields, request.changes), request.filters)


def _require_usable(cases: Sequence[Case]) -> None:
    if not cases:
        raise NoInputError("expected images as input (NIfTI, DICOM; of eyes also pictures), found none; check the path")
    if all(case.excluded for case in cases):
        reasons = Counter(case.excluded for case in cases)
        said = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        raise NoInputError(
            f"expected a case to work on, but rules leave out all {len(cases)}: {said}; try `medgen inspect`"
        )


def _recipe(request: RunRequest, bundle: OpenBundle) -> Recipe:
    settings = {
        **bundle.settings,
        "backend": request.backend,  # as asked for: what `auto` took may differ between the machines of one run
        "precision": request.precision,
        "format": request.formats,
        "preview": request.preview,
        "allow_irregular": request.allow_irregular,
    }
    return Recipe(bundle.name, bundle.version, bundle.weights_sha256, settings)


def _command(request: RunRequest) -> tuple[str, ...]:
    """The command line as it may be recorded: whoever hides the names of files hides that of their folder too."""
    if not request.hash_paths:
        return request.command
    return tuple("INPUT" if Path(word) == request.source else word for word in request.command)


def _steps(request: RunRequest, bundle: OpenBundle) -> Steps:
    def read(case: Case, sha256: str) -> tuple[MetaTensor, str]:
        return read_image(case, allow_irregular=request.allow_irregular), sha256

    def prepare(case: Case, item: tuple[MetaTensor, str]) -> predict.Prepared:
        image, sha256 = item
        return predict.prepare(bundle, case, image, input_sha256=sha256)

    def compute(case: Case, item: predict.Prepared) -> predict.Predicted:
        return predict.compute(bundle, item)

    def write(case: Case, item: predict.Predicted) -> CaseOutcome:
        result = predict.finish(bundle, item)
        written = write_result(result, request.output, request.formats, preview=request.preview)
        score = result.findings.score if result.findings else None
        return CaseOutcome(written.output, written.files, written.sha256, result.grid, result.flags, score)

    return Steps(read, prepare, compute, write)


def predict_case(bundle: OpenBundle, case: Case, *, allow_irregular: bool = False) -> Result:
    """Takes one case through an open bundle, without writing anything: read, prepare, compute, finish.

    Raises:
        MedgenError: the case cannot be used, or the bundle cannot do it.
    """
    image = read_image(case, allow_irregular=allow_irregular)
    prepared = predict.prepare(bundle, case, image, input_sha256=input_sha256(case))
    return predict.finish(bundle, predict.compute(bundle, prepared))


def evaluate_job(  # noqa: PLR0913 - one parameter an option
    bundle: str,
    manifest: Path,
    output: Path,
    *,
    split: str = "test",
    data_root: Path | None = None,
    device: str = "auto",
    trust: bool = False,
    changes: Sequence[str] = (),
    listen: Listen = lambda event: None,
) -> Evaluation:
    """Runs a bundle on the cases of a manifest's split, and compares with their `target`.

    Raises:
        MedgenError: the evaluation could not start.
    """
    pairs = manifest_pairs(manifest, split, data_root, read_metadata(find_bundle(bundle).folder).modality_in)
    if not pairs:
        raise NoInputError(f"expected cases in the split {split!r} of {manifest.name}, got none")
    opened = open_bundle(bundle, trust=trust, device=device, changes=changes)
    settled = 0

    def predicted(case: Case) -> Result:
        nonlocal settled
        listen(Event("stage", len(pairs), settled, case.name, "compute"))
        settled += 1
        return predict_case(opened, case)

    listen(Event("begin", len(pairs), 0))
    told = opened.metadata.fields
    changed = any(change.partition("=")[0] not in {"contrast", "reference.path"} for change in changes)
    thresholds = {} if changed else told.get("operating_threshold", {})  # it is of the bundle's own score
    protocol = find_protocol(str(told.get("evaluation", "synthesis")), thresholds.get(opened.scoring.get("contrast")))
    evaluation = evaluate(pairs, predicted, output, protocol)
    listen(Event("end", len(pairs), len(pairs)))
    return evaluation


def manifest_pairs(manifest: Path, split: str, data_root: Path | None = None, modality: str = "") -> list[Pair]:
    """Returns the cases of one split of a manifest with their truths (`target`).

    A mask (`brain`, `body` or `mask`) counts where one is given. A case is called by its image's path in the manifest.
    Images are of `modality`, see `find_cases`.

    Raises:
        ManifestError: the manifest is not valid, or one of its cases has no `image` or no `target`.
        NoInputError: a file that it names is not one volume.
    """
    root = find_data_root(manifest, data_root)
    pairs = []
    for item in datalist_from_manifest(manifest, split, data_root):
        missing = {"image", "target"} - item.keys()
        if missing:
            raise ManifestError(
                f"{manifest.name}: expected an image and a target for every case of {split}, one has no {min(missing)}"
            )
        image, truth = one_case(root, item["image"], modality), one_truth(root, item["target"])
        role = next((role for role in ("brain", "body", "mask") if role in item), None)
        mask = one_truth(root, item[role]) if role else None
        pairs.append(Pair(image, truth, item["patient"], mask))
    return pairs


def one_truth(root: Path, path: str) -> Case:
    """Returns the one volume at a path of a manifest that is measured against; of a picture's it may be a picture.

    Raises:
        NoInputError: there is none, or several.
    """
    return one_case(root, path, "OPT" if is_picture(Path(path)) else "")


def one_case(root: Path, image: Path | str | list[str], modality: str = "") -> Case:
    """Returns the one volume that a manifest lists, called by its path.

    Args:
        root: what paths are called relative to.
        image: its path, or as `datalist_from_manifest` has it.
        modality: see `find_cases`.

    Raises:
        NoInputError: there is none, or several.
    """
    listed = Listed.parse(image if isinstance(image, list) else str(image))
    path = listed.paths[0]
    if len(listed.paths) > 1 or listed.spacing_um:
        return picture_case(listed, PurePosixPath(path.relative_to(root).as_posix()))
    found = [case for case in find_cases(path, salt=b"manifest", modality=modality) if not case.excluded]
    if len(found) != 1:
        raise NoInputError(f"expected one volume at {path.relative_to(root)}, got {len(found)}; see `medgen inspect`")
    case, relative = found[0], PurePosixPath(path.relative_to(root).as_posix())
    stem = relative.with_name(relative.name.removesuffix(case.extension))
    return replace(case, name=str(relative), relative=relative, stem=stem)


def demo_job(output: Path, listen: Listen = lambda event: None) -> tuple[CohortSummary, dict[str, Path]]:
    """Writes the simulated sample to `output/sample`, runs `brain_t1_to_t2` over it, and says where things are.

    Returns:
        how the run went, and what lies where: one NIfTI, one DICOM series, one preview, the report, the table.
    """
    write_sample(output / "sample")
    results = output / "results"
    request = RunRequest("brain_t1_to_t2", output / "sample", results, formats="both", command=("demo", str(output)))
    summary = run_job(request, listen)
    firsts = {"NIfTI": "*.nii.gz", "DICOM": "*_dicom", "preview": "*.png"}
    found = {what: next(iter(sorted(results.rglob(pattern))), results) for what, pattern in firsts.items()}
    return summary, {**found, "report": results / "report.html", "table": results / "cases.csv"}
