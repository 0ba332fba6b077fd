"""`medgen manifest`: check, build and fetch data manifests."""

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli.words import Manifest, counted, errors, say
from medgen.progress import Progress

manifest_app = typer.Typer(no_args_is_help=True, help="Data manifests: which files, of which patients, in which split.")


@manifest_app.command("check")
def manifest_check(
    manifest: Manifest,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the manifest's paths begin; default $MEDGEN_DATA, else its folder.")
    ] = None,
) -> None:
    """Check a manifest: its form, every file and checksum, and that no patient is in two splits."""
    from medgen.read.manifest import check_manifest, find_manifest, load_manifest, where_to_get

    with errors():
        manifest = find_manifest(manifest)
        problems = check_manifest(manifest, data_root)
    for problem in problems:
        say(problem)
    if problems:
        say(f"{len(problems)} problems")
        raise typer.Exit(1)
    loaded = load_manifest(manifest)
    say("valid" if loaded["cases"] else f"valid; lists no files, only where to get them: {where_to_get(loaded)}")


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
    with errors():
        refuse_existing(output, overwrite=overwrite)
        fractions = parse_split(split)
        with Progress() as progress:
            cohort = gather(folders, patterns, unpaired=unpaired, listen=progress.hear)
    for reason in cohort.left_out:
        say(f"left out  {reason}")
    with errors():
        patients = write_manifest(cohort, output, fractions, seed, data_license=data_license, source=source)
    say(f"{len(cohort.cases)} cases, {len(cohort.left_out)} left out; patients: {counted(patients)}")
    say(f"wrote {output}, with paths relative to {cohort.root}")
    say("paths and patients are what the files are called: make sure that nobody is called by name")


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

    with errors(), Progress() as progress:
        manifest = find_manifest(manifest)
        summary = fetch_manifest(manifest, output, progress.hear)
    if summary.failed or not summary.usable:
        say(f"to be had by hand: {where_to_get(load_manifest(manifest))}")
    say(counted({name: getattr(summary, name) for name in ("done", "kept", "failed", "skipped")}))
    raise typer.Exit(summary.exit_code)
