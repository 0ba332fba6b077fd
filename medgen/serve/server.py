"""Starts a MONAI Label server with our app; where nothing else is said, only this machine can reach it.

FOLDER/            0700: scans pass through it
  main.py            tells the server which app is ours
  sitecustomize.py   the same stand-ins in the processes that the server starts
  logs/ tmp/ dicom/ sessions/   what the server logs, uploads and results under way, series of a DICOMweb server
  train/<bundle>/<run>/         what the train tasks made
"""

import importlib.util
import json
import logging
import os
import shutil
import socket
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence, Set
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from medgen.errors import BundleError, MedgenError, NoInputError, OutputError
from medgen.read.dicomweb import DicomWeb
from medgen.run.bundle import require_runnable
from medgen.run.catalog import BundleFolder, find_bundle, list_bundles
from medgen.run.metadata import read_metadata
from medgen.serve.stand_ins import install
from medgen.serve.studies import LISTED, listed_folder
from medgen.write.atomic import atomic_text, writing

_PATIENCE_S = 5.0
_SIGNATURES = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_log = logging.getLogger(__name__)

_MAIN = """# Made by medgen: the server looks here for its app.
from medgen.serve.app import MedgenApp  # noqa: F401
"""
# The server works on trainings and cohorts in processes of its own, which import this before anything else.
_SITE = """# Made by medgen.
from medgen.serve.stand_ins import install

install()
"""


def served_bundles(names: Sequence[str], *, trust: bool) -> list[BundleFolder]:
    """Returns the bundles to serve: those named, or all that are installed and can be run.

    Raises:
        BundleError: there is no such bundle, it cannot be run, or two have one name.
        UntrustedError: it is code from elsewhere and `trust` is not given.
    """
    found = [find_bundle(name) for name in names or (bundle.name for bundle in list_bundles())]
    usable = []
    for bundle in found:
        try:
            require_runnable(bundle, read_metadata(bundle.folder), trust=trust)
            usable.append(bundle)
        except BundleError as error:
            if names:
                raise
            _log.warning("%s is left out: %s", bundle.name, error)
    twice = [name for name, count in Counter(bundle.name for bundle in usable).items() if count > 1]
    if twice or not usable:
        raise BundleError(
            f"expected bundles of different names, got {', '.join(twice) + ' twice' if twice else 'none'}"
        )
    return usable


def serve(
    bundles: Sequence[str],
    studies: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    folder: Path,
    trust: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Serves bundles until stopped.

    Args:
        bundles: names or folders; none for all that are installed.
        studies: a folder, or the URL of a DICOMweb server.
        host: to listen at.
        port: to listen at.
        folder: for logs, uploads and trained weights.
        trust: run the code of bundles that did not come with medgen.
        tell: is told where, once nothing stands in the way.

    Raises:
        MedgenError: MONAI Label is not installed, the port is taken, the DICOMweb server does not answer, or there is
            no such bundle or folder.
    """
    if importlib.util.find_spec("monailabel") is None:
        raise MedgenError("expected MONAI Label beside medgen, found none; in a checkout `make label` installs it")
    chosen = served_bundles(bundles, trust=trust)
    place = _studies(studies)
    _require_free(host, port)
    if isinstance(place, str):
        _require_dicomweb(place)
    folder = folder.absolute()
    _write_app(folder)
    modalities = {read_metadata(bundle.folder).modality_in for bundle in chosen}
    if isinstance(place, Path):
        place = listed_folder(place, folder / "studies", modalities)
    _set_environment(folder, modalities)
    install()
    tell(f"medgen at http://{host}:{port} in a few seconds; Ctrl-C ends it")
    _start(chosen, str(place), host, port, folder, trust=trust)


def _start(chosen: Sequence[BundleFolder], studies: str, host: str, port: int, folder: Path, *, trust: bool) -> None:
    """Does what `monailabel start_server` does, without its log of everything that is asked."""
    import uvicorn  # noqa: PLC0415 - installed with MONAI Label
    from monailabel.config import settings  # noqa: PLC0415 - reads the environment

    settings.MONAI_LABEL_SERVER_PORT = port
    settings.MONAI_LABEL_APP_DIR = str(folder)
    settings.MONAI_LABEL_STUDIES = studies
    settings.MONAI_LABEL_APP_CONF = {
        "models": os.pathsep.join(str(bundle.folder) for bundle in chosen),
        "trust": str(trust).lower(),
    }
    # Without one, any page in the user's browser may read from the server. As text: MONAI Label makes of a URL one that
    # no browser's header equals, and its processes stop at it.
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    settings.MONAI_LABEL_CORS_ORIGINS = origins or [f"http://{host}:{port}"]
    os.environ.pop("MONAI_LABEL_CORS_ORIGINS", None)
    for name, value in settings.model_dump(exclude={"MONAI_LABEL_CORS_ORIGINS"}).items():  # for its processes
        if value is not None:
            os.environ[name] = json.dumps(value) if isinstance(value, list | dict) else str(value)
    from medgen.serve.endpoint import (  # noqa: PLC0415 - as above
        answer_while_computing,
        no_links,
        only_read,
        run_no_code,
        without_reload,
    )

    _accept_signed_tokens()
    answer_while_computing()
    only_read()
    run_no_code()
    # Archives are unpacked into sessions: none may name a place elsewhere. From Python 3.14 on this is so unasked.
    tarfile.TarFile.extraction_filter = staticmethod(no_links)
    os.chdir(folder)  # an image whose ID is the name of a file where the user stands would be taken for that file
    from monailabel.app import app  # noqa: PLC0415 - takes in the settings and endpoints of above

    without_reload(app)
    try:
        uvicorn.run(app, host=host, port=port, log_config=_logging(folder), access_log=False)
    finally:
        _clear(folder / "tmp")


def _accept_signed_tokens() -> None:
    """Lets MONAI Label's authentication check a signature: it names no algorithm, and PyJWT refuses every token then.

    Only those of a key pair: with the others whoever knows the realm's public key could sign.
    """
    import jwt  # noqa: PLC0415 - installed with MONAI Label
    from monailabel.endpoints.user import auth  # noqa: PLC0415 - needs the stand-ins

    auth.jwt = SimpleNamespace(decode=partial(jwt.decode, algorithms=_SIGNATURES))


def _require_dicomweb(address: str) -> None:
    """Finds out now whether the server answers, with these credentials; MONAI Label would start all the same."""
    for name, other in (("USER", "USERNAME"), ("PASSWORD", "PASSWORD")):
        ours, theirs = f"MEDGEN_DICOMWEB_{name}", f"MONAI_LABEL_DICOMWEB_{other}"
        for known, unknown in ((theirs, ours), (ours, theirs)):  # the second for viewers, which ask through MONAI Label
            if os.environ.get(known):
                os.environ.setdefault(unknown, os.environ[known])
    DicomWeb(address, patience_s=_PATIENCE_S).find({"SeriesInstanceUID": "1.2.3"})  # which need not be there


def _studies(studies: str) -> str | Path:
    address = studies.removeprefix("dicomweb+")
    if address.startswith(("http://", "https://")):
        return address
    if not Path(studies).is_dir():
        raise NoInputError(f"expected a folder of studies, or a DICOMweb URL, got nothing at {studies}")
    return Path(studies).resolve()


def _require_free(host: str, port: int) -> None:
    """Finds out in a moment what the server would find out after it has loaded everything."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise MedgenError(
            f"expected to listen at {host}:{port}, got: {error.strerror or error}; try another --port"
        ) from None


def _write_app(folder: Path) -> None:
    with writing(folder):
        for part in (folder, *(folder / name for name in ("logs", "tmp", "dicom", "sessions"))):
            part.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        _clear(folder / "tmp")  # of a server that was killed
        if not (folder / "main.py").exists() and any(path.is_file() for path in folder.iterdir()):
            raise OutputError(f"expected an empty folder, or one of an earlier server, at {folder.name}")
        atomic_text(folder / "main.py", _MAIN)
        atomic_text(folder / "sitecustomize.py", _SITE)


def _clear(folder: Path) -> None:
    for left in folder.glob("*"):
        left.unlink() if left.is_file() else shutil.rmtree(left, ignore_errors=True)


def _set_environment(folder: Path, modalities: Set[str]) -> None:
    """Sets what MONAI Label reads from the environment, unless the user has."""
    modality = next(iter(modalities)) if len(modalities) == 1 else ""
    defaults = {
        "MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI": "false",  # our reader checks geometry, and wants the headers
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": modality} if modality else {}),  # else only CT
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "dicom"),
        "MONAI_LABEL_DICOMWEB_READ_TIMEOUT": "60",
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(LISTED),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Uploads are nobody else's business. Not $TMPDIR: a socket of a training has its path there, which must be short.
    tempfile.tempdir = str(folder / "tmp")
    # Its children are started as `python`, and its tools looked for on the path.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


def _logging(folder: Path) -> dict[str, Any]:
    """Says what is logged: what MONAI Label tells of each request, its image and its parameters, is not."""
    handlers = {
        "screen": {"class": "logging.StreamHandler", "formatter": "line"},
        "file": {
            "class": "logging.handlers.RotatingFileHandler",
            "formatter": "line",
            "filename": str(folder / "logs" / "app.log"),  # where MONAI Label's own endpoint for logs looks
            "maxBytes": 10_000_000,
            "backupCount": 3,
        },
    }
    levels = {"uvicorn": "INFO", "medgen.serve": "INFO", "task_train": "INFO", "monailabel": "ERROR"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
        "handlers": handlers,
        "root": {"level": "WARNING", "handlers": list(handlers)},
        "loggers": {name: {"level": level} for name, level in levels.items()},
    }
