"""`medgen train`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from medgen.cli.words import NOTHING_STARTED, Bundle, Changes, Trust, errors, say
from medgen.progress import TrainProgress


def train(  # noqa: PLR0913, PLR0917 - one parameter an option
    bundle: Bundle,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; one found there is continued.")],
    data: Annotated[
        Path | None, typer.Option(metavar="MANIFEST", help="Data manifest; default: those that the bundle names.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the manifest's paths begin; default $MEDGEN_DATA, else its folder.")
    ] = None,
    config: Annotated[str, typer.Option(help="Config of the bundle: `train`, or `smoke` for two steps.")] = "train",
    changes: Changes = None,
    weights: Annotated[
        str, typer.Option("--from", metavar="FILE", help="Begin with these weights; `bundle` for the bundle's own.")
    ] = "",
    tracker: Annotated[Literal["tensorboard", "mlflow", "none"], typer.Option("--track", help="Where numbers go.")] = (
        "tensorboard"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and train nothing.")] = False,
    trust: Trust = False,
) -> None:
    """Train a bundle: checked before the first step, watched while it runs, measured at the end.

    `medgen train brain_t1_to_t2 --data mine.json -o run1 --from bundle --set max_epochs=20` fine-tunes on your own
    pairs. Kill it at any time: the same command goes on from the last checkpoint.
    """
    from medgen.run.train import plan_training, train_job
    from medgen.run.train_config import TrainRequest

    request = TrainRequest(bundle, output, data, data_root, config, tuple(changes or ()), weights, tracker, trust)
    with errors():
        if dry_run:
            checks = plan_training(request)
            for check in checks:
                say(f"{'WRONG ' if check.wrong else 'ok    '}{check.what}: {check.finding}")
            raise typer.Exit(NOTHING_STARTED if any(check.wrong for check in checks) else 0)
        with TrainProgress() as progress:
            summary = train_job(request, progress.hear)
    say(f"{summary.epochs} epochs in {summary.seconds:.0f} s; see {output / 'README.md'}")
    for name, value in summary.measured.items():
        say(f"  {name:<10}{value:.4g}")
    for finding in summary.findings:
        say(f"  health: {finding}")
