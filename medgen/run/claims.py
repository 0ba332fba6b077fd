"""Who works on what, agreed through a shared folder: several processes and machines never do a case twice.

A claim is a file that only one process can create, under a name that follows from the case. It says who made it, and
its maker touches it while it lives. A dead maker is known at once on the same machine, elsewhere by a claim that nobody
has touched for `STALE_SECONDS`.

A dead claim is never deleted by another process, since between looking and deleting it may have become somebody's live
claim. It is outbid: claim 1 over a dead claim 0, and so on; again only one process can create it.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
_SAME_START_SECONDS = 3.0  # a process's start time is derived from the clock, which may be set while it runs
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}

_log = logging.getLogger(__name__)
_owners_here: set[str] = set()


@dataclass(frozen=True)
class Identity:
    """Which process on which machine.

    Attributes:
        id: unlike any other process's, ever.
        machine: host, boot and process namespace: where this is equal, a process ID means the same process.
        pid: process ID.
        started: when the process started `[s since the epoch]`; tells it from a later one with its process ID.
    """

    id: str
    machine: str
    pid: int
    started: float

    @classmethod
    def mine(cls) -> "Identity":
        """Returns a new identity for this process."""
        return cls(uuid.uuid4().hex, _machine(), os.getpid(), psutil.Process().create_time())

    def is_running(self) -> bool | None:
        """Says whether the process lives; None where that cannot be seen from here."""
        if self.machine != _machine():
            return None
        if self.pid == os.getpid():
            return self.id in _owners_here
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < _SAME_START_SECONDS
            return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return None


@dataclass(frozen=True)
class Claim:
    """A case that this process holds: files `<base>.claim0` to `<base>.claim<generation>`, the last one its own."""

    base: Path
    generation: int

    @property
    def path(self) -> Path:
        """The file that this process made."""
        return claim_path(self.base, self.generation)


def claim_path(base: Path, generation: int) -> Path:
    """Returns where the claim of this generation lies."""
    return base.with_name(f"{base.name}.claim{generation}")


class Owner:
    """This process among those that share a ledger; it beats while it is open.

    Args:
        folder: where the processes leave their identities; on the same file system as the claims.
    """

    def __init__(self, folder: Path) -> None:
        self.identity = Identity.mine()
        self._folder = folder
        self._file = folder / f"{self.identity.id}.json"
        self._held: set[Path] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        _owners_here.add(self.identity.id)  # before anyone can see the file and ask whether its maker lives
        with self._file.open("x", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(self.identity)))
            stream.flush()
            os.fsync(stream.fileno())
        self.began_ns = self._file.stat().st_mtime_ns
        self._thread = threading.Thread(target=self._beat, name="medgen-heartbeat", daemon=True)
        self._thread.start()

    def try_claim(self, base: Path) -> Claim | None:
        """Takes a case; None when a living process holds it. At most one of all processes gets it."""
        generation = 0
        while True:
            path = claim_path(base, generation)
            if path not in self._held and create_once(self._file, path):
                with self._lock:
                    self._held.add(path)
                return Claim(base, generation)
            alive = self._is_alive(path)
            if alive:
                return None
            # Gone: it was released since, and the search begins again. Dead: it is outbid.
            generation = 0 if alive is None else generation + 1

    def holds(self, claim: Claim) -> bool:
        """Says whether the claim still counts: a process that slept for long may have been outbid."""
        outbid = claim_path(claim.base, claim.generation + 1).exists()
        return claim.path in self._held and claim.path.exists() and not outbid

    def release(self, claim: Claim, *, recorded: bool) -> None:
        """Gives a case back.

        Args:
            claim: what `try_claim` returned.
            recorded: whether the case's outcome is on record. Only then dead claims below go too: whoever still
                believes in them finds the record before starting to work.
        """
        with self._lock:
            self._held.discard(claim.path)
        claim.path.unlink(missing_ok=True)
        for generation in reversed(range(claim.generation if recorded else 0)):
            claim_path(claim.base, generation).unlink(missing_ok=True)

    def living_others(self) -> list[str]:
        """Returns the ids of the other living processes, and forgets the dead."""
        living = []
        for path in self._folder.glob("*.json"):
            if path == self._file:
                continue
            if self._is_alive(path):
                living.append(path.stem)
            else:
                path.unlink(missing_ok=True)
        return living

    def close(self) -> None:
        """Gives everything back and takes leave."""
        self._closed.set()
        self._thread.join()
        with self._lock:
            held, self._held = self._held, set()
        for path in (*held, self._file):
            path.unlink(missing_ok=True)
        _owners_here.discard(self.identity.id)

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            with self._lock:
                held = list(self._held)
            # One file under several names where hard links exist, so that touching it twice costs nothing.
            for path in (self._file, *held):
                try:
                    os.utime(path)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    _log.warning("heartbeat failed (%s); other machines may take over this one's cases", error.strerror)

    def _is_alive(self, path: Path) -> bool | None:
        """Says whether the maker of a file lives; None when the file is gone."""
        try:
            text, touched = path.read_text(encoding="utf-8"), path.stat().st_mtime
        except FileNotFoundError:
            return None
        with contextlib.suppress(ValueError, TypeError):  # empty: its maker died, or has not finished writing
            running = Identity(**json.loads(text)).is_running()
            if running is not None:
                return running
        return self._now() - touched < STALE_SECONDS

    def _now(self) -> float:
        """Returns the time by the clock of the file system, which all machines share."""
        try:
            os.utime(self._file)
            return self._file.stat().st_mtime
        except FileNotFoundError:  # after taking leave, or taken for dead
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix="clock") as probe:
                return Path(probe.name).stat().st_mtime


def create_once(source: Path, target: Path) -> bool:
    """Makes `target` with the content of `source`, whole or not at all; False when it exists.

    A hard link does that in one step, on network file systems too. Where there are none, an exclusively created copy
    has to do, which may be found empty for a moment.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        # A network file system that repeats a request may find the link that the first one made.
        with contextlib.suppress(FileNotFoundError):
            return target.samefile(source)
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _copy_once(source, target)
    return True


def _copy_once(source: Path, target: Path) -> bool:
    mode = source.stat().st_mode & 0o777
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as stream, source.open("rb") as content:
        shutil.copyfileobj(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    return True


@functools.cache
def _machine() -> str:
    """Names the host, its boot and the process namespace (containers may share a host's name, not its process IDs)."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux only; elsewhere the host's name has to do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "|".join(parts)
