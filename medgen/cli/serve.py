"""`medgen serve`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from medgen.cli.words import Trust, errors, say

_YES = {"1", "true", "t", "yes", "y", "on"}
_THIS_MACHINE = {"127.0.0.1", "::1", "localhost"}


def serve(
    studies: Annotated[
        str, typer.Option("--studies", metavar="FOLDER|URL", help="Images to work on: a folder, or a DICOMweb URL.")
    ],
    bundles: Annotated[
        list[str] | None, typer.Argument(metavar="[BUNDLE]...", help="Which to serve; all if none is named.")
    ] = None,
    host: Annotated[str, typer.Option(help="To listen at; 0.0.0.0 lets the whole network in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="To listen at.")] = 8000,
    folder: Annotated[Path, typer.Option("--folder", help="For logs and for what the train tasks make.")] = Path(
        "medgen_label"
    ),
    trust: Trust = False,
) -> None:
    """Serve bundles to viewers and scripts through MONAI Label; `make label` installs it."""
    from medgen.serve.server import serve as start_server

    with errors():
        if host not in _THIS_MACHINE and os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").lower() not in _YES:
            say(f"anyone who reaches {host}:{port} can read the studies; SERVING.md says how to ask who they are")
        start_server(bundles or [], studies, host=host, port=port, folder=folder, trust=trust, tell=say)
