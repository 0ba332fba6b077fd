"""Files that are either whole under their name or not there: written aside, flushed to the disk, then renamed.

A temporary file lies beside its target, so that the rename stays within one file system. Its name starts with a dot and
says which process made it, so that `remove_leftovers` clears up after a killed run and leaves a live one alone.
"""

import errno
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from medgen.errors import OutputError

PREFIX = ".medgen-part-"
# Nobody can ask another machine whether its process lives; a part this old belongs to a dead one.
ABANDONED_AFTER_S = 24 * 3600.0

_HOST = sha256(socket.gethostname().encode()).hexdigest()[:8]
_RUN = secrets.token_hex(
    4
)  # tells this process from a dead one that had the same process id, as in a restarted container

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file is larger than this file system or account allows",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENAMETOOLONG: "the name is too long for this file system; use a shorter path or --hash-paths",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses into an `OutputError` that names `path` by its last part.

    Raises:
        OutputError: with what to do about it.
    """
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or type(error).__name__)
        raise OutputError(f"cannot write {path.name}: {reason}") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there appears under `path` when the block ends well.

    Missing parent folders are made. An existing file is replaced. If the block raises, nothing is left.

    Raises:
        OutputError: if it cannot be written; an `OSError` in the block is taken for one.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        try:
            yield part
            flush(part)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        flush(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; it becomes `path` when the block ends well.

    An existing folder is set aside for the moment of the rename and then deleted: someone who looks sees the old one,
    none, or the new one, never a mixture. If the block raises, nothing is left.

    Raises:
        OutputError: if it cannot be written; an `OSError` in the block is taken for one.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        part.mkdir()
        try:
            yield part
            _flush_tree(part)
            _replace_folder(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        flush(path.parent)


def atomic_text(path: Path, text: str) -> None:
    """Writes `text` in UTF-8 to `path`, whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def remove_leftovers(folder: Path) -> int:
    """Deletes what a killed run left aside below `folder`, and returns how much it found.

    What belongs to a live process of this machine stays, as does what another machine made, unless it is a day old.

    Raises:
        OutputError: if it cannot be deleted.
    """
    removed = 0
    for parent, folders, files in os.walk(folder):
        for name in [name for name in (*folders, *files) if name.startswith(PREFIX)]:
            part = Path(parent, name)
            if name in folders:
                folders.remove(name)
            if not _abandoned(part):
                continue
            with writing(part):
                shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
            removed += 1
    return removed


def flush(path: Path) -> None:
    """Returns once the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (
            path.is_dir() and error.errno in {errno.EINVAL, errno.ENOTSUP}
        ):  # some network shares cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _part(path: Path) -> Path:
    """A name aside that nobody else uses, with the extensions that tell writers the format."""
    extensions = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    return path.with_name(f"{PREFIX}{_HOST}-{os.getpid()}-{_RUN}-{secrets.token_hex(4)}{extensions}")


def _flush_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            flush(Path(parent, name))
        flush(Path(parent))


def _replace_folder(part: Path, path: Path) -> None:
    if not path.exists():
        part.rename(path)
        return
    old = _part(path)
    path.rename(old)
    part.rename(path)
    shutil.rmtree(old)


def _abandoned(part: Path) -> bool:
    """Whether the process that was writing `part` is gone."""
    try:
        if time.time() - part.stat().st_mtime > ABANDONED_AFTER_S:
            return True
    except FileNotFoundError:
        return False
    host, pid, run = [*part.name.removeprefix(PREFIX).split("-"), "", "", ""][:3]
    if host != _HOST or not pid.isdecimal():
        return False
    return run != _RUN if int(pid) == os.getpid() else not _alive(int(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
