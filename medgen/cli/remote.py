"""`medgen run` over a DICOMweb server, and `medgen watch`, which runs a bundle on whatever arrives."""

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medgen.cli.words import (
    AllowIrregular,
    AllSeries,
    Backend,
    Bundle,
    Changes,
    Device,
    Formats,
    Only,
    Output,
    Precision,
    Trust,
    errors,
    print_json,
    say,
    say_end,
)
from medgen.errors import MedgenError
from medgen.progress import Progress

if TYPE_CHECKING:
    from medgen.run.request import RunRequest
    from medgen.run.signals import Stop

DICOMWEB = "dicomweb+"
_QUERY = "--query"
_LOOK_S = 5.0  # how long who only looks waits for a server that does not answer


def without_values(words: Sequence[str]) -> tuple[str, ...]:
    """Returns a command line as it may be recorded: of a query, which may name a patient, its keywords alone.

    Example:
        >>> without_values(["run", "b", "--query", "PatientID=7,Modality=MR", "--query=PatientName=Doe"])
        ('run', 'b', '--query', 'PatientID,Modality', '--query=PatientName')
    """
    kept: list[str] = []
    for word in words:
        option, _, value = word.partition("=")
        if kept and kept[-1] == _QUERY:
            kept.append(_keywords(word))
        else:
            kept.append(f"{_QUERY}={_keywords(value)}" if option == _QUERY and value else word)
    return tuple(kept)


def _keywords(query: str) -> str:
    # A part without a value may be the end of a name that has a comma in it.
    return ",".join(found[1] for part in query.split(",") if (found := re.match(r"\s*([A-Za-z]+)\s*=", part)))


def run_at_server(address: str, query: str, request: "RunRequest", *, store: bool, dry_run: bool, as_json: bool) -> int:
    """Runs a bundle over the series at a server, says how it went, and returns the exit code.

    Raises:
        MedgenError: the run could not start.
    """
    from medgen.read.dicomweb import DicomWeb
    from medgen.run.remote import require_series, require_storable, run_remote
    from medgen.run.steps import Event

    if store:
        require_storable(request)
    server = DicomWeb(address, patience_s=_LOOK_S) if dry_run else DicomWeb(address)
    if dry_run:
        found = require_series(request, server, query)
        counts = {"studies": len({one.study for one in found}), "series": len(found)}
        counts["instances"] = sum(one.instances for one in found)
        print_json(counts) if as_json else say(", ".join(f"{count} {what}" for what, count in counts.items()))
        return 0
    with Progress() as progress:
        server.patience.tell = lambda text: progress.hear(Event("note", 0, 0, reason=text))
        summary, stored = run_remote(request, server, query, store=store, listen=progress.hear)
    code = 1 if summary.exit_code == 0 and stored and stored.failed else summary.exit_code
    if as_json:
        print_json({**asdict(summary), "stored": asdict(stored) if stored else None, "exit_code": code})
        return code
    say_end(summary, request.output)
    if stored:
        say(f"{stored.sent} sent to the server, {stored.kept} sent before, {len(stored.failed)} not taken")
        for case, reason in stored.failed.items():
            say(f"  {case}: {reason}")
    return code


def watch(  # noqa: PLR0913, PLR0917 - one parameter an option
    bundle: Bundle,
    source: Annotated[str, typer.Argument(metavar="FOLDER|DICOMWEB", help="What is filled, or a server's address.")],
    output: Output,
    query: Annotated[
        str, typer.Option(_QUERY, metavar="KEY=VALUE,...", help="Which series at the server, as QIDO-RS matches.")
    ] = "",
    store: Annotated[bool, typer.Option("--store", help="Send the DICOM results back to the server.")] = False,
    settle: Annotated[float, typer.Option(min=0, help="Seconds without change after which a study is whole.")] = 60.0,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 10.0,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: Precision = "auto",
    formats: Formats = "same",
    only: Only = "",
    all_series: AllSeries = False,
    allow_irregular: AllowIrregular = False,
    changes: Changes = None,
    trust: Trust = False,
) -> None:
    """Run a bundle on every study that arrives, when it has stopped arriving, until stopped with Ctrl-C.

    Kill it at any time: started again, it does what is not done. A study that grows later is done again.
    """
    from medgen.run.request import RunRequest
    from medgen.run.select import Filters
    from medgen.run.signals import Stop

    stop = Stop()
    with errors(), stop.on_signals(), Progress() as progress:
        request = RunRequest(
            bundle=bundle,
            source=Path(source),
            output=output,
            device=device,
            backend=backend,
            precision=precision,
            formats=formats,
            filters=Filters(only=only, all_series=all_series),
            allow_irregular=allow_irregular,
            trust=trust,
            changes=tuple(changes or ()),
            command=without_values(sys.argv[1:]),
        )
        if not source.startswith(DICOMWEB) and (query or store):
            raise MedgenError(f"expected a DICOMweb server beside --query and --store: {DICOMWEB}https://...")
        address = source if source.startswith(DICOMWEB) else ""
        _watch(request, address, query, stop, progress, store=store, settle_s=settle, every_s=every)


def _watch(
    request: "RunRequest",
    address: str,
    query: str,
    stop: "Stop",
    progress: Progress,
    *,
    store: bool,
    settle_s: float,
    every_s: float,
) -> None:
    from medgen.read.dicomweb import DicomWeb, parse_query
    from medgen.run.remote import require_storable
    from medgen.run.watch import FolderPlace, Place, Quiet, ServerPlace, Watcher

    if store:
        require_storable(request)
    quiet, server = Quiet(settle_s), None
    place: Place
    if address:
        parse_query(query)
        # Not patient: it will look again.
        server = DicomWeb(address, patience_s=every_s, pause=stop.wait)
        place = ServerPlace(request, quiet, server, query, progress.hear)
    else:
        place = FolderPlace(request, quiet)
    watcher = Watcher(place, quiet, request, stop, server=server if store else None, listen=progress.hear)
    say(f"watching; a study is taken {settle_s:g} s after its last change; Ctrl-C ends it")
    watcher.watch(every_s)
