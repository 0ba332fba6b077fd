"""What the commands do, whole: find the cases, choose among them, open the bundle, run the cohort, write the report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from monai.data import MetaTensor

from medgen.case import Case, Result
from medgen.errors import ManifestError, NoInputError
from medgen.read.bscan_cases import picture_case
from medgen.read.discover import find_cases, input_sha256
from medgen.read.manifest import Listed, datalist_from_manifest, find_data_root
from medgen.read.oct import is_picture
from medgen.read.reader import read_image
from medgen.run import predict
from medgen.run.backend import with_backend
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.catalog import find_bundle
from medgen.run.evaluate import Evaluation, Pair, evaluate
from medgen.run.metadata import read_metadata
from medgen.run.protocol import find_protocol
from medgen.run.publish import RunInfo
from medgen.run.quick_compile import keep_plan
from medgen.run.records import CaseOutcome, Recipe
from medgen.run.request import (
    Listen,
    RunRequest,
    command_of,
    require_startable,
    run_steps,
    settings_of,
    write_outcome,
)
from medgen.run.steps import CohortSummary, Event, Steps
from medgen.simulate.sample import write_sample


def run_job(request: RunRequest, listen: Listen = lambda event: None) -> CohortSummary:
    """Runs a bundle over a cohort and writes `cases.csv`, `run.json` and `report.html` beside the results.

    Raises:
        MedgenError: the run could not start; nothing was done then.
    """
    require_startable(request)
    bundle = open_computed(request, lambda text: listen(Event("note", 0, 0, reason=text)))
    recipe = Recipe(bundle.name, bundle.version, bundle.weights_sha256, settings_of(request, bundle.settings))
    info = RunInfo(recipe, command_of(request), str(bundle.device), request.part, computed_by=bundle.computed_by)
    return run_steps(request, info, _steps(request, bundle), listen)


def open_computed(request: RunRequest, tell: Callable[[str], None] = lambda text: None) -> OpenBundle:
    """Opens the bundle of a request, on the back end that is to compute it; a plan is kept of one that has one.

    Args:
        request: what was asked for.
        tell: is told why it takes long, where it does.

    Raises:
        MedgenError: it cannot be opened, or not computed as asked for.
    """
    opened = open_bundle(request.bundle, trust=request.trust, device=request.device, changes=request.changes)
    bundle = with_backend(opened, request.backend, request.precision, tell)
    keep_plan(request, bundle, opened.network)
    return bundle


def _steps(request: RunRequest, bundle: OpenBundle) -> Steps:
    def read(case: Case, sha256: str) -> tuple[MetaTensor, str]:
        return read_image(case, allow_irregular=request.allow_irregular), sha256

    def prepare(case: Case, item: tuple[MetaTensor, str]) -> predict.Prepared:
        image, sha256 = item
        return predict.prepare(bundle, case, image, input_sha256=sha256)

    def compute(case: Case, item: predict.Prepared) -> predict.Predicted:
        return predict.compute(bundle, item)

    def write(case: Case, item: predict.Predicted) -> CaseOutcome:
        return write_outcome(request, predict.finish(bundle, item))

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
