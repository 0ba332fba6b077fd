"""Archives are unpacked into a folder of their own, whole or not at all, and nothing in them lands anywhere else."""

import gzip
import lzma
import tarfile
import zipfile
import zlib
from pathlib import Path

from medgen.errors import FetchError
from medgen.read.manifest import lies_below
from medgen.write.atomic import atomic_folder

# Hidden, so that a search for scans passes it by.
MARK = ".unpacked-from"
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


def is_unpacked(folder: Path, mark: str) -> bool:
    """Whether an archive has been unpacked into this folder.

    Raises:
        FetchError: something else is there.
    """
    if not folder.exists():
        return False
    if not (folder / MARK).is_file() or (folder / MARK).read_text(encoding="utf-8") != mark:
        raise FetchError(f"expected no folder {folder.name}, got one that this archive did not make; move it away")
    return True


def unpack(archive: Path, folder: Path, mark: str) -> None:
    """Unpacks a zip or tar into a new folder, marked as coming from this archive.

    Args:
        archive: the file.
        folder: appears when all is in it.
        mark: tells archives apart, for `is_unpacked`.

    Raises:
        FetchError: it is no zip or tar, broken, or has a path or link that leads out of the folder.
        OutputError: it cannot be written.
    """
    with atomic_folder(folder) as part:
        try:
            if tarfile.is_tarfile(archive):
                with tarfile.open(archive) as tar:
                    tar.extractall(part, filter="data")  # refuses paths and links that lead out, and devices
            elif zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as packed:
                    _require_below(archive, packed.namelist())
                    packed.extractall(part)  # noqa: S202 - names were checked, and links come out as files
            else:
                raise FetchError(f"{archive.name}: expected a zip or tar archive")
        except _BROKEN as error:
            raise FetchError(f"{archive.name} cannot be unpacked: {error}; if it is damaged, delete it") from error
        (part / MARK).write_text(mark, encoding="utf-8")


def _require_below(archive: Path, names: list[str]) -> None:
    outside = [name for name in names if not lies_below(name)]
    if outside:
        raise FetchError(f"{archive.name}: expected paths inside the archive, got {outside[0]}")
