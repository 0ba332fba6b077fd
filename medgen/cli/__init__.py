"""The command line: parses, calls `run`, prints. Nothing else in medgen prints.

Heavy imports (torch, MONAI) happen inside the commands that need them, so that `--help` and `list` answer at once.
"""

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import medgen
from medgen.cli.cache import cache_app
from medgen.cli.calibrate import calibrate
from medgen.cli.dose import lowdose
from medgen.cli.latent import latent_app, sample
from medgen.cli.manifest import manifest_app
from medgen.cli.phantom import phantom
from medgen.cli.remote import DICOMWEB, run_at_server, watch, without_values
from medgen.cli.serve import serve
from medgen.cli.train import train
from medgen.cli.words import (
    AllowIrregular,
    AllSeries,
    Backend,
    Bundle,
    Changes,
    Device,
    Formats,
    Json,
    Only,
    Output,
    Precision,
    Source,
    Trust,
    counted,
    errors,
    print_json,
    say,
    say_end,
)
from medgen.errors import MedgenError
from medgen.progress import Progress

if TYPE_CHECKING:  # these bring numpy
    from medgen.case import Case

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
app.add_typer(manifest_app, name="manifest")
app.add_typer(latent_app, name="latent")
app.add_typer(cache_app, name="cache")
app.command()(sample)
app.command()(calibrate)
app.command()(train)
app.command()(phantom)
app.command()(lowdose)
app.command()(watch)
app.command()(serve)


def _show_version(asked: bool) -> None:
    if asked:
        say(medgen.__version__)
        raise typer.Exit


@app.command("list")
def list_bundles(as_json: Json = False) -> None:
    """Show the bundles: what each makes from what, whether its weights are the ones it names, and how good it is."""
    from medgen.run.catalog import list_bundles as installed

    bundles = [bundle.to_json() for bundle in installed()]
    if as_json:
        print_json(bundles)
        return
    for bundle in bundles:
        say(f"{bundle['name']} {bundle['version']}: {bundle['task']}")
        say(f"  {bundle['modality']}, {bundle['input']} to {bundle['output']}; weights {bundle['weights']}")
        say(f"  measured: {bundle['headline'] or 'nothing declared'}")
    if not bundles:
        say("no bundle is installed; $MEDGEN_BUNDLES may name a folder of bundles")


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

    with errors():
        rows = inspect_input(source, bundle=bundle, allow_irregular=allow_irregular, voxels=voxels)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        say(f"{row['verdict']:<7}{row['where']}")
        facts = "; ".join(filter(None, (row["description"], row["grid"], ", ".join(row["flags"]))))
        for line in filter(None, (facts, row["reason"])):
            say(f"{'':7}{line}")
    say(counted(Counter(row["verdict"] for row in rows)))


@app.command()
def run(  # noqa: PLR0913, PLR0917 - one parameter an option: a command line is wide by nature
    bundle: Bundle,
    source: Source,
    output: Output,
    query: Annotated[
        str, typer.Option(metavar="KEY=VALUE,...", help="At a DICOMweb server: which series, as QIDO-RS matches.")
    ] = "",
    store: Annotated[
        bool, typer.Option("--store", help="Send the DICOM results back to the DICOMweb server, each once.")
    ] = False,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: Precision = "auto",
    formats: Formats = "same",
    part: Annotated[str, typer.Option(metavar="I/N", help="Do part I of N; start the others elsewhere.")] = "1/1",
    jobs: Annotated[int, typer.Option(min=1, help="Cases read, and written, at a time; the network runs one.")] = 1,
    limit: Annotated[int, typer.Option(min=0, help="Stop after this many cases; 0 for no limit.")] = 0,
    only: Only = "",
    modality: Annotated[str, typer.Option(help="Only DICOM series of this modality, such as MR.")] = "",
    all_series: AllSeries = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished cases again.")] = False,
    preview: Annotated[bool, typer.Option("--preview/--no-preview", help="A picture beside every result.")] = True,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write seconds by stage and case, and flame graphs, into OUTPUT/profile.")
    ] = False,
    allow_irregular: AllowIrregular = False,
    hash_paths: Annotated[
        bool, typer.Option("--hash-paths", help="Hash the names of NIfTI files and pictures too, not only DICOM's.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first case that fails.")] = False,
    changes: Changes = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Run a bundle over a cohort. Every case is accounted for in OUTPUT/cases.csv; look at OUTPUT/report.html.

    Kill it at any time: the same command resumes, and does no finished case again unless the input, the bundle or the
    settings have changed.
    """
    from medgen.run.plan import Part
    from medgen.run.request import RunRequest, plan_job
    from medgen.run.select import Filters
    from medgen.run.start import start

    with errors():
        request = RunRequest(
            bundle=bundle,
            source=Path(source),
            output=output,
            device=device,
            backend=backend,
            precision=precision,
            formats=formats,
            part=Part.parse(part),
            jobs=jobs,
            limit=limit,
            filters=Filters(only=only, modality=modality, all_series=all_series),
            overwrite=overwrite,
            preview=preview,
            profile=profile,
            allow_irregular=allow_irregular,
            hash_paths=hash_paths,
            fail_fast=fail_fast,
            trust=trust,
            changes=tuple(changes or ()),
            command=without_values(sys.argv[1:]),
        )
        if source.startswith(DICOMWEB):
            raise typer.Exit(run_at_server(source, query, request, store=store, dry_run=dry_run, as_json=as_json))
        if query or store or source.startswith(("http://", "https://")):
            raise MedgenError(
                f"expected {DICOMWEB}https://... as --input of a DICOMweb server, and beside --query and --store"
            )
        if dry_run:
            _print_plan(plan_job(request), as_json=as_json)
            return
        with Progress() as progress:
            summary = start(request, progress.hear)
    if as_json:
        print_json({**asdict(summary), "exit_code": summary.exit_code})
    else:
        say_end(summary, output)
    raise typer.Exit(summary.exit_code)


@app.command()
def evaluate(  # noqa: PLR0913, PLR0917 - one parameter an option
    bundle: Bundle,
    data: Annotated[
        Path,
        typer.Option(
            metavar="MANIFEST", help="Data manifest with inputs and true outputs, a path or a name that medgen knows."
        ),
    ],
    output: Output,
    split: Annotated[
        str, typer.Option(help="`train`, `validation` or `test`; `all` where scans have classes.")
    ] = "test",
    data_root: Annotated[
        Path | None, typer.Option(help="Where the manifest's paths begin; default $MEDGEN_DATA.")
    ] = None,
    device: Device = "auto",
    changes: Changes = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Run a bundle on scans whose true output, or class, is known: metrics.csv, a summary with intervals, pictures."""
    from medgen.read.manifest import find_manifest
    from medgen.run.judge import judge

    with errors(), Progress() as progress:
        evaluation = judge(
            bundle,
            find_manifest(data),
            output,
            split=split,
            data_root=data_root,
            device=device,
            trust=trust,
            changes=changes or (),
            listen=progress.hear,
        )
    if as_json:
        print_json(evaluation.summary())
    else:
        say(evaluation.table())
    raise typer.Exit(1 if evaluation.failed else 0)


@app.command()
def demo(
    output: Annotated[Path, typer.Argument(help="Folder for the sample and its results.")] = Path("demo_output"),
) -> None:
    """Make a simulated T1 brain (NIfTI and DICOM), turn it into a T2, and say where the results are."""
    from medgen.run.job import demo_job

    with errors(), Progress() as progress:
        summary, places = demo_job(output, progress.hear)
    say_end(summary, output / "results")
    for what, path in places.items():
        say(f"  {what:<9}{path}")
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


def _print_plan(cases: "Sequence[Case]", *, as_json: bool) -> None:
    rows = [(case.name, _fate(case), case.excluded or case.refused) for case in cases]
    if as_json:
        print_json([{"case": name, "would_be": fate, "reason": reason} for name, fate, reason in rows])
        return
    for name, fate, reason in rows:
        say(f"{fate:<8}{name}{f': {reason}' if reason else ''}")
    say(counted(Counter(fate for _, fate, _ in rows)))


def _fate(case: "Case") -> str:
    return "skipped" if case.excluded else "failed" if case.refused else "run"
