"""`medgen lowdose`."""

from typing import Annotated, Literal

import typer

from medgen.cli.words import Input, Output, errors, say
from medgen.progress import Progress


def lowdose(
    source: Input,
    output: Output,
    fraction: Annotated[float, typer.Option(help="Of the dose: 0.25 for a quarter.", min=0.01, max=1)] = 0.25,
    kernel: Annotated[
        Literal["own", "soft", "sharp"], typer.Option(help="Of the added noise; `own` is the scan's, by its spectrum.")
    ] = "own",
    photons: Annotated[
        float,
        typer.Option(help="Incident photons a millimetre of the detector; 0 fits them to the scan's own noise.", min=0),
    ] = 0.0,
    slices: Annotated[int, typer.Option(help="From the middle of each scan; 0 for all.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
) -> None:
    """Write CT at a lower dose beside the same at full dose, with a manifest for `medgen evaluate`."""
    from medgen.run.dose import write_low_dose

    with errors(), Progress() as progress:
        cohort, told = write_low_dose(
            source,
            output,
            fraction=fraction,
            kernel=kernel,
            photons=photons,
            slices=slices,
            seed=seed,
            listen=progress.hear,
        )
    for name, what in told.items():
        say(f"{name}: {what}")
    say(f"{len(cohort.cases)} scans at {fraction:g} of their dose; pairs are in {output / 'manifest.json'}")
    raise typer.Exit(1 if len(cohort.cases) < len(told) else 0)
