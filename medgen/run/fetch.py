"""What a manifest says is open is downloaded, checked and unpacked."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from medgen.errors import FetchError
from medgen.read.manifest import load_manifest
from medgen.run.download import Tell, download
from medgen.run.steps import CohortSummary, Event
from medgen.run.unpack import is_unpacked, unpack

_MEGABYTE = 1e6

Listen = Callable[[Event], None]


def fetch_manifest(path: Path, output: Path, listen: Listen = lambda event: None) -> CohortSummary:
    """Downloads what a manifest says is open; the same call again goes on, and leaves alone what is there.

    Args:
        path: the manifest.
        output: folder for the files.
        listen: told of progress.

    Returns:
        counts of downloads; none is usable where the data have to be had by hand, as `where_to_get` says.

    Raises:
        ManifestError: it is not a valid manifest.
        OutputError: a file cannot be written.
    """
    manifest = load_manifest(path)
    items = manifest.get("downloads", []) if manifest.get("access", "open") == "open" else []
    summary = CohortSummary(total=len(items), usable=len(items), skipped=0 if items else 1)
    listen(Event("begin", len(items), 0))
    for item in items:
        kind, reason = _settle(item, output, partial(_tell, listen, summary, item["path"]))
        setattr(summary, kind, getattr(summary, kind) + 1)
        listen(Event(kind, len(items), summary.settled, item["path"], reason=reason))
    listen(Event("end", len(items), len(items)))
    return summary


def _settle(item: Mapping[str, Any], output: Path, tell: Tell) -> tuple[Literal["done", "kept", "failed"], str]:
    checksum = next((f"{kind}:{item[kind]}" for kind in ("sha256", "md5") if kind in item), None)
    file, folder = output / item["path"], output / item["unpack"] if "unpack" in item else None
    mark = f"{item['address']} {checksum or 'unchecked'}"
    try:
        if folder and is_unpacked(folder, mark):
            return "kept", ""
        done = download(item["address"], file, checksum, item.get("size_bytes"), tell)
        if folder:
            unpack(file, folder, mark)
    except FetchError as error:
        return "failed", str(error)
    return ("done" if done or folder else "kept"), ""


def _tell(listen: Listen, summary: CohortSummary, name: str, there: int, total: int) -> None:
    size = f"{there / _MEGABYTE:.0f}{f' of {total / _MEGABYTE:.0f}' if total else ''} MB"
    listen(Event("stage", summary.total, summary.settled, name, size))
