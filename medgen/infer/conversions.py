"""Networks converted for a back end, in the user's cache folder: made once, whole or not at all, checked when read.

`$MEDGEN_CACHE` names another folder. An entry is called by a hash of everything that it was made from, so that nothing
stale is ever found; `medgen cache clear` removes all of them.
"""

import atexit
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from platformdirs import user_cache_path

from medgen.provenance import file_sha256

if TYPE_CHECKING:  # what was converted before is found without torch
    from torch import nn

logger = logging.getLogger(__name__)

_FORM = 2  # of what is kept here and of what is done with it: another number, and everything is made again
_LISTING = "content.json"  # of an entry: what it holds, with sums; written last


@dataclass(frozen=True)
class Entry:
    """One thing in the cache.

    Attributes:
        folder: where its files lie.
        about: what it was made from, in words.
        size_bytes: of its files.
    """

    folder: Path
    about: str
    size_bytes: int


def cache_folder() -> Path:
    """Returns where converted networks are kept: `$MEDGEN_CACHE`, else `medgen` in the system's place for caches."""
    named = os.environ.get("MEDGEN_CACHE")
    return Path(named) if named else user_cache_path("medgen")


def network_sha256(network: "nn.Module") -> str:
    """Returns one hash of a network's weights, its layers as they print themselves, and the source of their classes."""
    import torch  # noqa: PLC0415 - two seconds of import, which finding an entry does not need

    digest = hashlib.sha256(repr(network).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    modules = sorted({type(layer).__module__ for layer in network.modules()} - {"builtins"})
    for module in (name for name in modules if not name.startswith("torch.")):  # torch's is in the version
        source = getattr(sys.modules.get(module), "__file__", None)
        digest.update(file_sha256(Path(source)).encode() if source and Path(source).is_file() else module.encode())
    return digest.hexdigest()


def key_of(parts: Mapping[str, Any]) -> str:
    """Returns the name of an entry made from these parts: 32 hex digits."""
    return hashlib.sha256(json.dumps({"form": _FORM, **parts}, sort_keys=True, default=str).encode()).hexdigest()[:32]


def kept(kind: str, parts: Mapping[str, Any], make: Callable[[Path], None], *, about: str) -> Path:
    """Returns the folder of what `parts` were made into; the first call makes it.

    Of several processes one makes it and the others wait. What is killed on the way leaves nothing that is believed,
    and what was damaged since is made again.

    Args:
        kind: of entry, such as `"openvino"`; a part of its place.
        parts: everything that the result depends on, as JSON types.
        make: writes the files into the empty folder that it is given.
        about: what it is, for `medgen cache`.

    Raises:
        Exception: whatever `make` raises; nothing is kept then.
    """
    place = _writable_folder() / kind / key_of(parts)
    if is_whole(place):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if is_whole(place):  # another process has made it meanwhile
            return place
        unfinished = place.with_suffix(".part")
        for folder in (unfinished, place):  # of a process that was killed, or damaged
            shutil.rmtree(folder, ignore_errors=True)
        unfinished.mkdir()
        try:
            make(unfinished)
            _list(unfinished, about)
            unfinished.rename(place)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return place


def find_kept(kind: str, parts: Mapping[str, Any]) -> Path | None:
    """Returns the folder of what `parts` were made into, if that was done and nothing of it was damaged since."""
    place = cache_folder() / kind / key_of(parts)
    return place if place.is_dir() and is_whole(place) else None


@functools.cache
def _own_folder() -> Path:
    """A folder for this process alone, removed when it ends."""
    folder = tempfile.mkdtemp(prefix="medgen-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _writable_folder() -> Path:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        writable = False
    else:
        writable = os.access(folder, os.W_OK)
    if writable:
        return folder
    logger.warning("%s cannot be written: networks are converted for this run alone; see $MEDGEN_CACHE", folder)
    return _own_folder()


def entries() -> list[Entry]:
    """Returns what is in the cache, sorted by place."""
    found = []
    for listing in sorted(cache_folder().glob(f"*/*/{_LISTING}")):
        with suppress(OSError, ValueError, KeyError):
            about = str(json.loads(listing.read_text(encoding="utf-8"))["about"])
            size = sum(file.stat().st_size for file in listing.parent.iterdir())
            found.append(Entry(listing.parent, about, size))
    return found


def clear() -> int:
    """Removes everything that medgen has put into its cache; returns the bytes that were freed.

    Only what medgen makes is removed, since `$MEDGEN_CACHE` may name a folder that holds other things. Do it while
    nothing runs: a run that is converting a network would have to do so again.
    """
    freed = 0
    for kind in KINDS:
        folder = cache_folder() / kind
        freed += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        shutil.rmtree(folder, ignore_errors=True)
    return freed


KINDS = ("openvino", "onnx", "tensorrt", "compile", "choices", "plans")


def _list(folder: Path, about: str) -> None:
    sums = {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if file.is_file()}
    with (folder / _LISTING).open("w", encoding="utf-8") as stream:
        json.dump({"about": about, "sha256": sums}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def is_whole(folder: Path) -> bool:
    """Says whether an entry is there, as it was written."""
    try:
        sums = json.loads((folder / _LISTING).read_text(encoding="utf-8"))["sha256"]
        whole = all(file_sha256(folder / name) == sha for name, sha in sums.items())
    except (OSError, ValueError, KeyError):
        return False
    if not whole:
        logger.warning("a converted network in %s is damaged: it is made again", folder)
    return whole


@contextmanager
def compile_cache() -> Iterator[None]:
    """Has torch.compile keep what it makes in medgen's cache folder, where `medgen cache clear` finds it."""
    folder = cache_folder() / "compile"
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        else:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


@contextmanager
def without_notices() -> Iterator[None]:
    """Keeps from the user what converters and tracers say of a network's code, which who runs it has not written."""
    talkers = {logging.getLogger(name): logging.ERROR for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    talkers[logging.getLogger()] = logging.getLogger().level  # some exporters leave it changed
    before = {talker: talker.level for talker in talkers}
    try:
        for talker, level in talkers.items():
            talker.setLevel(level)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for talker, level in before.items():
            talker.setLevel(level)
