"""`medgen calibrate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from medgen.cli.words import Bundle, Changes, Device, Trust, errors, say


def calibrate(  # noqa: PLR0913, PLR0917 - one parameter an option
    bundle: Bundle,
    data: Annotated[
        list[Path],
        typer.Option(metavar="MANIFEST", help="Scans (`image`), lesions if any (`target`, `abnormal`); repeatable."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The reference, .json.")],
    split: Annotated[str, typer.Option(help="`train`, `validation` or `test`.")] = "train",
    data_root: Annotated[
        Path | None, typer.Option(help="Where the manifest's paths begin; default $MEDGEN_DATA.")
    ] = None,
    simulated: Annotated[int, typer.Option(min=0, help="Simulated healthy people, for the score of a whole scan.")] = 0,
    tissue_root: Annotated[
        Path | None, typer.Option(help="Where the tissue maps of eve-template.json are; default --data-root.")
    ] = None,
    unseen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATIENT[,PATIENT]=FILE", help="Weights of a model not trained on these patients; repeatable."
        ),
    ] = None,
    device: Device = "auto",
    changes: Changes = None,
    trust: Trust = False,
) -> None:
    """Fit the healthy reference that a scoring bundle's p-values rest on, and test that they are uniform on health.

    `medgen run BUNDLE --set reference.path=FILE` then uses it: a reference of your own scanner and controls.
    """
    from medgen.infer.reference import HealthyReference
    from medgen.read.manifest import find_manifest
    from medgen.run.bundle import open_bundle
    from medgen.run.calibrate import SimulatedScans, controls_of, fit_reference, save, table, uniformities
    from medgen.run.calibrate_scans import fit_normal_scans, scores_bscans

    missing = []

    def left_out(what: str, error: Exception) -> None:
        missing.append(what)
        say(f"  left out: {error}")

    with errors():
        opened = open_bundle(bundle, trust=trust, device=device, changes=changes or (), reference=False)
        modality = opened.metadata.modality_in
        controls = [
            control for manifest in data for control in controls_of(find_manifest(manifest), split, data_root, modality)
        ]
        weights = _unseen(unseen or ())

        def listen(what: str, number: int, total: int) -> None:
            say(f"{number + 1} of {total}: {what}")

        reference: HealthyReference
        if scores_bscans(opened):
            reference = fit_normal_scans(opened, controls, unseen=weights, listen=listen, leave_out=left_out)
        else:
            people = SimulatedScans(simulated, opened.scoring.get("contrast", ""), tissue_root or data_root)
            reference = fit_reference(
                opened, controls, unseen=weights, simulated=people, listen=listen, leave_out=left_out
            )
        save(reference, output)
    say(reference.describe())
    say(table(uniformities(reference)))
    if missing:
        say(f"left out: {', '.join(missing)}")
    raise typer.Exit(1 if missing else 0)


def _unseen(pairs: Sequence[str]) -> dict[str, Path]:
    weights: dict[str, Path] = {}
    for pair in pairs:
        patients, _, file = pair.partition("=")
        if not Path(file).is_file():
            raise typer.BadParameter(f"expected PATIENT=FILE with a file of weights, got {pair!r}")
        weights |= dict.fromkeys(patients.split(","), Path(file))
    return weights
