"""What only the owner of an output folder may read: the salt of the names, where cases came from, whole tracebacks."""

import csv
import hmac
import io
import os
import secrets
import time
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from medgen.case import Case
from medgen.errors import OutputError
from medgen.run.claims import create_once
from medgen.write.atomic import atomic_write, writing

LEDGER_FOLDER = ".medgen"
_SALT_BYTES = 32
_SALT_PATIENCE_SECONDS = 5.0


def make_salt(output: Path) -> bytes:
    """Returns the secret that names in this output folder are hashed with, one for all processes; makes it if needed.

    Raises:
        OutputError: if the folder cannot be written, or the salt in it is damaged.
    """
    path = output / LEDGER_FOLDER / "salt"
    with writing(output):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            draft = path.with_name(f"salt-{secrets.token_hex(8)}")
            _write_private(draft, secrets.token_bytes(_SALT_BYTES))
            create_once(draft, path)
            draft.unlink()
        patience_ends = time.monotonic() + _SALT_PATIENCE_SECONDS
        while len(salt := path.read_bytes()) != _SALT_BYTES:
            # Without hard links another process's salt may be seen before it is whole.
            if time.monotonic() > patience_ends:
                raise OutputError(
                    f"expected {_SALT_BYTES} bytes in {LEDGER_FOLDER}/salt, got {len(salt)}; restore or delete it"
                )
            time.sleep(0.05)
        return salt


def peek_salt(output: Path) -> bytes:
    """Returns the folder's salt, or a passing one where there is none yet: for looking without leaving a trace."""
    path = output / LEDGER_FOLDER / "salt"
    return path.read_bytes() if path.is_file() else secrets.token_bytes(_SALT_BYTES)


def keyed_hash(salt: bytes, text: str) -> str:
    """Returns a hash of text that nobody without the salt can guess the text from, 64 hex digits."""
    return hmac.digest(salt, text.encode("utf-8", "surrogateescape"), "sha256").hex()


def write_paths(output: Path, cases: Iterable[Case]) -> None:
    """Adds where each case came from to `.medgen/paths.private.csv`, which only its owner can read.

    Raises:
        OutputError: if it cannot be written.
    """
    path = output / LEDGER_FOLDER / "paths.private.csv"
    known = _known_paths(path)
    for case in cases:
        if not case.files:  # it could not be had
            continue
        source = case.files[0] if len(case.files) == 1 else case.files[0].parent
        known[case.name] = str(source)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "path"))
    writer.writerows(sorted(known.items()))
    with atomic_write(path) as part:
        _write_private(part, text.getvalue().encode("utf-8", "surrogateescape"))


def log_traceback(output: Path, case: str, stage: str, error: BaseException) -> None:
    """Appends the whole of an error to `.medgen/errors.private.log`, which only its owner can read; at best effort."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    text = f"{when} {case} at {stage}\n{''.join(traceback.format_exception(error))}\n"
    try:
        _write_private(output / LEDGER_FOLDER / "errors.private.log", text.encode("utf-8", "replace"), os.O_APPEND)
    except OSError:
        return  # the disk may be full, which is then the error on record


def _known_paths(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return {row["case"]: row["path"] for row in csv.DictReader(stream)}


def _write_private(path: Path, content: bytes, mode: int = os.O_TRUNC) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
