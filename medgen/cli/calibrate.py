"""`medgen calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli.words import Bundle, Changes, Device, Trust, errors, say


def calibrate(  # noqa: PLR0913, PLR0917 - one parameter an option
    bundle: Bundle,
    data: Annotated[
        Path, typer.Option(metavar="MANIFEST", help="Healthy scans, or scans (`image`) and lesions (`target`).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The reference, .json.")],
    split: Annotated[str, typer.Option(help="`train`, `validation` or `test`.")] = "train",
    data_root: Annotated[
        Path | None, typer.Option(help="Where the manifest's paths begin; default $MEDGEN_DATA.")
    ] = None,
    simulated: Annotated[int, typer.Option(min=0, help="Simulated healthy people, for the score of a whole scan.")] = 0,
    unseen: Annotated[
        list[str] | None,
        typer.Option(metavar="PATIENT=FILE", help="Weights of a model not trained on this patient; repeatable."),
    ] = None,
    device: Device = "auto",
    changes: Changes = None,
    trust: Trust = False,
) -> None:
    """Fit the healthy reference that a scoring bundle's p-values rest on, and test that they are uniform on health.

    `medgen run BUNDLE --set reference.path=FILE` then uses it: a reference of your own scanner and controls.
    """
    from medgen.run.bundle import open_bundle
    from medgen.run.calibrate import fit_reference, save, table, uniformities

    with errors():
        weights = {}
        for pair in unseen or ():
            patient, _, file = pair.partition("=")
            if not Path(file).is_file():
                raise typer.BadParameter(f"expected PATIENT=FILE with a file of weights, got {pair!r}")
            weights[patient] = Path(file)
        opened = open_bundle(bundle, trust=trust, device=device, changes=changes or (), reference=False)
        reference = fit_reference(
            opened,
            data,
            split=split,
            data_root=data_root,
            unseen=weights,
            simulated=simulated,
            listen=lambda what, number, total: say(f"{number + 1} of {total}: {what}"),
        )
        save(reference, output)
    say(reference.describe())
    say(table(uniformities(reference)))
