"""The command line: parses, calls `run`, prints. Nothing else in medgen prints.

Heavy imports (torch, MONAI) happen inside the commands that need them, so that `--help` and `list` answer at once.
"""

import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import medgen
from medgen.errors import MedgenError, UntrustedError
from medgen.progress import Progress

if TYPE_CHECKING:  # these bring numpy
    from medgen.case import Case
    from medgen.run.steps import CohortSummary

NOTHING_STARTED = 2

app = typer.Typer(
    name="medgen",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""One scan becomes another, for a whole cohort at a time. Research software, not a medical device.

- A first look: `medgen demo`
- What is installed: `medgen list`
- What is in this folder: `medgen inspect FOLDER`
- Run over it: `medgen run brain_t1_to_t2 -i FOLDER -o RESULTS`

The same run again takes up where the last one ended.
Exit codes: 0 all done, 1 some cases failed, 2 nothing could start.
""",
)
manifest_app = typer.Typer(no_args_is_help=True, help="Data manifests: which files, of which patients, in which split.")
app.add_typer(manifest_app, name="manifest")

Bundle = Annotated[str, typer.Argument(metavar="BUNDLE", help="Name of an installed bundle, or a bundle's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the code of a bundle that did not come with medgen. Read it first.")
]
Manifest = Annotated[Path, typer.Argument(metavar="FILE", help="A manifest, or the name of one that medgen brings.")]
Device = Annotated[
    str, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes the GPU where there is one.")
]
Input = Annotated[
    Path,
    typer.Option(
        "--input", "-i", help="A file, a folder (searched to the bottom), a .txt or .tsv list, or a data manifest."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if it is not there.")]
AllowIrregular = Annotated[
    bool,
    typer.Option(
        "--allow-irregular",
        help="Resample tilted or unevenly spaced series to a regular grid, not refuse them.",
    ),
]


def _show_version(asked: bool) -> None:
    if asked:
        _say(medgen.__version__)
        raise typer.Exit


@app.command("list")
def list_bundles(as_json: Json = False) -> None:
    """Show the bundles: what each makes from what, whether its weights are the ones it names, and how good it is."""
    from medgen.run.catalog import list_bundles as installed

    bundles = [bundle.to_json() for bundle in installed()]
    if as_json:
        _print_json(bundles)
        return
    for bundle in bundles:
        _say(f"{bundle['name']} {bundle['version']}: {bundle['task']}")
        _say(f"  {bundle['modality']}, {bundle['input']} to {bundle['output']}; weights {bundle['weights']}")
        _say(f"  measured: {bundle['headline'] or 'nothing declared'}")
    if not bundles:
        _say("no bundle is installed; $MEDGEN_BUNDLES may name a folder of bundles")


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A file, folder, list or manifest.")],
    bundle: Annotated[str, typer.Option(help="Show which series this bundle would choose.")] = "",
    allow_irregular: AllowIrregular = False,
    voxels: Annotated[
        bool, typer.Option("--voxels", help="Read every volume, not only headers; slower, misses nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is in a file or folder: cases, series, grids, what would be refused and why. Starts nothing."""
    from medgen.run.inspect import inspect_input

    with _errors():
        rows = inspect_input(source, bundle=bundle, allow_irregular=allow_irregular, voxels=voxels)
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        _say(f"{row['verdict']:<7}{row['where']}")
        facts = "; ".join(filter(None, (row["description"], row["grid"], ", ".join(row["flags"]))))
        for line in filter(None, (facts, row["reason"])):
            _say(f"{'':7}{line}")
    _say(_counted(Counter(row["verdict"] for row in rows)))


@app.command()
def run(  # noqa: PLR0913, PLR0917 - one parameter an option: a command line is wide by nature
    bundle: Bundle,
    source: Input,
    output: Output,
    device: Device = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Of the network's arithmetic.")
    ] = "auto",
    formats: Annotated[Literal["same", "nifti", "dicom", "both"], typer.Option("--format", help="To write.")] = "same",
    part: Annotated[str, typer.Option(metavar="I/N", help="Do part I of N; start the others elsewhere.")] = "1/1",
    jobs: Annotated[int, typer.Option(min=1, help="Cases read, and written, at a time; the network runs one.")] = 1,
    limit: Annotated[int, typer.Option(min=0, help="Stop after this many cases; 0 for no limit.")] = 0,
    only: Annotated[
        str, typer.Option(metavar="REGEX", help="Only series whose description, or files whose path, matches.")
    ] = "",
    modality: Annotated[str, typer.Option(help="Only DICOM series of this modality, such as MR.")] = "",
    all_series: Annotated[
        bool, typer.Option("--all-series", help="Every series of a study, not only those the bundle declares.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished cases again.")] = False,
    preview: Annotated[bool, typer.Option("--preview/--no-preview", help="A picture beside every result.")] = True,
    allow_irregular: AllowIrregular = False,
    hash_paths: Annotated[
        bool, typer.Option("--hash-paths", help="Hash the names of NIfTI files too, not only DICOM's.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first case that fails.")] = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Run a bundle over a cohort. Every case is accounted for in OUTPUT/cases.csv; look at OUTPUT/report.html.

    Kill it at any time: the same command resumes, and does no finished case again unless the input, the bundle or the
    settings have changed.
    """
    from medgen.run.job import RunRequest, plan_job, run_job
    from medgen.run.plan import Part
    from medgen.run.select import Filters

    with _errors():
        request = RunRequest(
            bundle=bundle,
            source=source,
            output=output,
            device=device,
            precision=precision,
            formats=formats,
            part=Part.parse(part),
            jobs=jobs,
            limit=limit,
            filters=Filters(only=only, modality=modality, all_series=all_series),
            overwrite=overwrite,
            preview=preview,
            allow_irregular=allow_irregular,
            hash_paths=hash_paths,
            fail_fast=fail_fast,
            trust=trust,
            command=tuple(sys.argv[1:]),
        )
        if dry_run:
            _print_plan(plan_job(request), as_json=as_json)
            return
        with Progress() as progress:
            summary = run_job(request, progress.hear)
    if as_json:
        _print_json({**asdict(summary), "exit_code": summary.exit_code})
    else:
        _say_end(summary, output)
    raise typer.Exit(summary.exit_code)


@app.command()
def evaluate(
    bundle: Bundle,
    data: Annotated[Path, typer.Option(metavar="MANIFEST", help="Data manifest with inputs and true outputs.")],
    output: Output,
    split: Annotated[str, typer.Option(help="`train`, `validation` or `test`.")] = "test",
    data_root: Annotated[
        Path | None, typer.Option(help="Where the manifest's paths begin; default $MEDGEN_DATA.")
    ] = None,
    device: Device = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Run a bundle on scans whose true output is known: metrics.csv, a summary with intervals, and pictures."""
    from medgen.run.job import evaluate_job

    with _errors(), Progress() as progress:
        evaluation = evaluate_job(
            bundle,
            data,
            output,
            split=split,
            data_root=data_root,
            device=device,
            trust=trust,
            listen=progress.hear,
        )
    if as_json:
        _print_json(evaluation.summary())
    else:
        _say(evaluation.table())
    raise typer.Exit(1 if evaluation.failed else 0)


@manifest_app.command("check")
def manifest_check(
    manifest: Manifest,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the manifest's paths begin; default $MEDGEN_DATA, else its folder.")
    ] = None,
) -> None:
    """Check a manifest: its form, every file and checksum, and that no patient is in two splits."""
    from medgen.read.manifest import check_manifest, find_manifest, load_manifest, where_to_get

    with _errors():
        manifest = find_manifest(manifest)
        problems = check_manifest(manifest, data_root)
    for problem in problems:
        _say(problem)
    if problems:
        _say(f"{len(problems)} problems")
        raise typer.Exit(1)
    loaded = load_manifest(manifest)
    _say("valid" if loaded["cases"] else f"valid; lists no files, only where to get them: {where_to_get(loaded)}")


@manifest_app.command("build")
def manifest_build(  # noqa: PLR0913, PLR0917 - as in `run`
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Searched to the bottom.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The manifest to write.")],
    image: Annotated[str, typer.Option(metavar="WHAT", help="Files that a model is given.")],
    target: Annotated[str, typer.Option(metavar="WHAT", help="Files that it should make of them.")] = "",
    also: Annotated[list[str] | None, typer.Option(metavar="ROLE=WHAT", help="More of each case: `brain=...`.")] = None,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="Every file is a case of its own.")] = False,
    split: Annotated[str, typer.Option(help="Fractions of the patients.")] = "train=0.8,validation=0.1,test=0.1",
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    data_license: Annotated[str, typer.Option("--license", help="Of the data.")] = "not stated",
    source: Annotated[str, typer.Option(help="Where the data come from.")] = "not stated",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """List the files of a cohort with checksums, and give every patient, with all sessions, to one split.

    WHAT is a BIDS suffix or a path with `{patient}` and perhaps `{session}`, in which `*` and `**/` stand for anything:

    - `medgen manifest build BIDS -o cohort.json --image T1w --target T2w`
    - `medgen manifest build IXI -o ixi.json --image "T1/{patient}-T1.nii.gz" --target "T2/{patient}-T2.nii.gz"`
    - `medgen manifest build DATA -o mr_ct.json --image "mr/{patient}.nii" --target "ct/{patient}.nii" --unpaired`

    `{patient}` takes as few characters as fit. Paths and patients go into FILE as the files are called: where their
    names hold a person's name, rename them first.
    """
    from medgen.read.split import parse_split
    from medgen.run.build import gather, refuse_existing, write_manifest

    patterns = {"image": image, "target": target} | dict(role.partition("=")[::2] for role in also or ())
    patterns = {role: pattern for role, pattern in patterns.items() if role != "target" or target}
    with _errors():
        refuse_existing(output, overwrite=overwrite)
        fractions = parse_split(split)
        with Progress() as progress:
            cohort = gather(folders, patterns, unpaired=unpaired, listen=progress.hear)
    for reason in cohort.left_out:
        _say(f"left out  {reason}")
    with _errors():
        patients = write_manifest(cohort, output, fractions, seed, data_license=data_license, source=source)
    _say(f"{len(cohort.cases)} cases, {len(cohort.left_out)} left out; patients: {_counted(patients)}")
    _say(f"wrote {output}, with paths relative to {cohort.root}")
    _say("paths and patients are what the files are called: make sure that nobody is called by name")


@manifest_app.command("fetch")
def manifest_fetch(
    manifest: Manifest,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the data.")],
) -> None:
    """Download what a manifest says is open, check and unpack it; say how to get what is not. Resumes when repeated.

    - `medgen manifest fetch ixi -o DATA/ixi`
    """
    from medgen.read.manifest import find_manifest, load_manifest, where_to_get
    from medgen.run.fetch import fetch_manifest

    with _errors(), Progress() as progress:
        manifest = find_manifest(manifest)
        summary = fetch_manifest(manifest, output, progress.hear)
    if summary.failed or not summary.usable:
        _say(f"to be had by hand: {where_to_get(load_manifest(manifest))}")
    _say(_counted({name: getattr(summary, name) for name in ("done", "kept", "failed", "skipped")}))
    raise typer.Exit(summary.exit_code)


@app.command()
def demo(
    output: Annotated[Path, typer.Argument(help="Folder for the sample and its results.")] = Path("demo_output"),
) -> None:
    """Make a simulated T1 brain (NIfTI and DICOM), turn it into a T2, and say where the results are."""
    from medgen.run.job import demo_job

    with _errors(), Progress() as progress:
        summary, places = demo_job(output, progress.hear)
    _say_end(summary, output / "results")
    for what, path in places.items():
        _say(f"  {what:<9}{path}")
    raise typer.Exit(summary.exit_code)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of `medgen` itself; its help text is the app's."""


def main() -> None:
    """Entry point of the `medgen` command."""
    # pydicom's warnings quote values from headers, and a header holds names.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    # What MONAI warns of lies in a bundle's config, which who runs it has not written; geometry and values are checked.
    warnings.filterwarnings("ignore", module=r"monai\.")
    app()


def _say(text: str) -> None:
    typer.echo(text)


def _print_json(value: object) -> None:
    _say(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _print_plan(cases: "Sequence[Case]", *, as_json: bool) -> None:
    rows = [(case.name, _fate(case), case.excluded or case.refused) for case in cases]
    if as_json:
        _print_json([{"case": name, "would_be": fate, "reason": reason} for name, fate, reason in rows])
        return
    for name, fate, reason in rows:
        _say(f"{fate:<8}{name}{f': {reason}' if reason else ''}")
    _say(_counted(Counter(fate for _, fate, _ in rows)))


def _fate(case: "Case") -> str:
    return "skipped" if case.excluded else "failed" if case.refused else "run"


def _say_end(summary: "CohortSummary", output: Path) -> None:
    counts = {name: getattr(summary, name) for name in ("done", "kept", "failed", "skipped")}
    _say(f"{_counted(counts)} in {summary.seconds:.0f} s; see {output / 'report.html'}")
    if summary.stopped:
        _say(f"stopped early: {summary.stopped}; the same command goes on from here")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing"


@contextmanager
def _errors() -> Iterator[None]:
    """Turns what medgen raises on purpose into one message and exit code 2; anything else is a bug and shows itself."""
    try:
        yield
    except UntrustedError as error:
        for kind, what, where in error.items:
            typer.echo(f"{kind:<11}{where}: {what}", err=True)
        typer.echo(f"medgen: {error}", err=True)
        raise typer.Exit(NOTHING_STARTED) from error
    except MedgenError as error:
        typer.echo(f"medgen: {error}", err=True)
        raise typer.Exit(NOTHING_STARTED) from error
