"""What the commands share: options that mean the same everywhere, and how they print and fail."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medgen.errors import MedgenError, UntrustedError

if TYPE_CHECKING:
    from medgen.run.steps import CohortSummary

NOTHING_STARTED = 2

Bundle = Annotated[str, typer.Argument(metavar="BUNDLE", help="Name of an installed bundle, or a bundle's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the code of a bundle that did not come with medgen. Read it first.")
]
Manifest = Annotated[Path, typer.Argument(metavar="FILE", help="A manifest, or the name of one that medgen brings.")]
Device = Annotated[
    str, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes the GPU where there is one.")
]
Backend = Annotated[
    Literal["auto", "torch", "compile", "openvino", "onnx", "tensorrt"],
    typer.Option(help="What computes the network; `auto`: the fastest whose output is the same within tolerance."),
]
Precision = Annotated[
    Literal["auto", "fp32", "mixed", "bf16", "fp16"],
    typer.Option(help="Of the network's arithmetic; `mixed`: bf16, but fp32 in its last layers."),
]
Formats = Annotated[Literal["same", "nifti", "dicom", "both"], typer.Option("--format", help="To write.")]
Only = Annotated[
    str, typer.Option(metavar="REGEX", help="Only series whose description, or files whose path, matches.")
]
AllSeries = Annotated[
    bool, typer.Option("--all-series", help="Every series of a study, not only those the bundle declares.")
]
Input = Annotated[
    Path,
    typer.Option(
        "--input", "-i", help="A file, a folder (searched to the bottom), a .txt or .tsv list, or a data manifest."
    ),
]
Source = Annotated[
    str,
    typer.Option(
        "--input",
        "-i",
        help="A file, a folder (searched to the bottom), a .txt or .tsv list, a data manifest, or a DICOMweb server as "
        "`dicomweb+https://HOST/PATH`.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if it is not there.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change an id of the config; repeatable.")
]
AllowIrregular = Annotated[
    bool,
    typer.Option(
        "--allow-irregular",
        help="Resample tilted or unevenly spaced series to a regular grid, not refuse them.",
    ),
]


def say(text: str) -> None:
    """Prints one line."""
    typer.echo(text)


def print_json(value: object) -> None:
    """Prints what a program reads."""
    say(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def counted(counts: Mapping[str, int]) -> str:
    """Reads `{"done": 2, "failed": 0}` as "2 done"; what is zero is not named."""
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing"


def say_end(summary: "CohortSummary", output: Path) -> None:
    """Says how a run ended, and where to look."""
    counts = {name: getattr(summary, name) for name in ("done", "kept", "failed", "skipped")}
    flagged = f" ({summary.flagged} flagged)" if summary.flagged else ""
    say(f"{counted(counts)}{flagged} in {summary.seconds:.0f} s; see {output / 'report.html'}")
    if summary.stopped:
        say(f"stopped early: {summary.stopped}; the same command goes on from here")


@contextmanager
def errors() -> Iterator[None]:
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
