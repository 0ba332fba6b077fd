"""`medgen phantom`."""

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli.words import Output, errors, say
from medgen.progress import Progress


def phantom(
    output: Output,
    data: Annotated[
        Path, typer.Option(metavar="MANIFEST", help="Heads: labels, or an averaged CT with maps of its brain.")
    ] = Path("head-templates"),
    count: Annotated[int, typer.Option(help="People of each head.", min=1)] = 8,
    split: Annotated[str, typer.Option(help="`train`, `validation` or `test`.")] = "test",
    seed: Annotated[int, typer.Option(help="Of the first person; trainings validate on 0 and 1.")] = 100,
    variety: Annotated[
        float, typer.Option(help="From 0, typical people alone, to 1, as wide as people can be.", min=0, max=1)
    ] = 0.5,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the manifest's paths begin; default $MEDGEN_DATA, else its folder.")
    ] = None,
) -> None:
    """Write simulated heads, T1-weighted MR and CT of the same people, with a manifest for `medgen evaluate`."""
    from medgen.run.phantom import write_phantoms

    with errors(), Progress() as progress:
        cohort = write_phantoms(
            data,
            output,
            count=count,
            split=split,
            seed=seed,
            variety=variety,
            data_root=data_root,
            listen=progress.hear,
        )
    say(f"{len(cohort.cases)} people in {output}; their true CT is in {output / 'manifest.json'}")
