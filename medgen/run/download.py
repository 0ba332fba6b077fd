"""One file from the web: taken up where an earlier try ended, checked, and under its name only when it is whole."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
from urllib3.exceptions import HTTPError as BrokenTransferError

from medgen.errors import FetchError
from medgen.write.atomic import writing

PART_SUFFIX = ".part"
_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 60

Tell = Callable[[int, int], None]


def download(address: str, target: Path, checksum: str | None, size_bytes: int | None, tell: Tell) -> bool:
    """Downloads a file, or finds that it is there; what arrived of it waits beside it, as `.part`, for the next try.

    Args:
        address: of the file.
        target: where it goes; missing parent folders are made.
        checksum: `sha256:...` or `md5:...`.
        size_bytes: of the file; where neither is known, a part left by an earlier call is not trusted.
        tell: told how many bytes are there and how many there will be (0 if the server does not say).

    Returns:
        whether anything had to be done.

    Raises:
        FetchError: the server does not give it, or it has another checksum or size.
        OutputError: it cannot be written.
    """
    part = target.with_name(target.name + PART_SUFFIX)
    pooch.get_logger().setLevel(logging.WARNING)
    with writing(target):
        if target.exists():
            _require_same(target, checksum, size_bytes)
            return False
        if checksum is None and size_bytes is None:
            part.unlink(missing_ok=True)
        fill = partial(take_up, part=part, size_bytes=size_bytes, tell=tell)
        try:
            pooch.retrieve(address, checksum, target.name, target.parent, downloader=fill)
        except (requests.RequestException, BrokenTransferError) as error:
            raise FetchError(_reason(error, address)) from error
        except ValueError as error:  # pooch has removed the file
            raise FetchError(str(error).partition(". Deleted")[0]) from error
    return True


def take_up(address: str, output: str, _pooch: object, *, part: Path, size_bytes: int | None, tell: Tell) -> None:
    """Downloads into `part`, from where it ends, for as long as every try brings something; then calls it `output`.

    A downloader for pooch.
    """
    while True:
        before = _size(part)
        try:
            _transfer(address, part, tell)
        except (requests.ConnectionError, requests.Timeout, BrokenTransferError):
            if _size(part) <= before:
                raise
        else:
            break
    got = _size(part)
    if size_bytes not in {None, got}:
        part.unlink()
        raise FetchError(f"expected {size_bytes} bytes, got {got}")
    part.replace(output)


def _transfer(address: str, part: Path, tell: Tell) -> None:
    begun = _size(part)
    # What is compressed on the way has another checksum, and a range of it another meaning.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
    with requests.get(address, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
        if begun and answer.status_code == requests.codes.requested_range_not_satisfiable:
            whole = answer.headers.get("Content-Range") == f"bytes */{begun}"
        else:
            answer.raise_for_status()
            _append(answer, part, begun if answer.status_code == requests.codes.partial_content else 0, tell)
            whole = True
    if not whole:  # the part is longer than the file
        part.unlink()
        _transfer(address, part, tell)


def _append(answer: requests.Response, part: Path, begun: int, tell: Tell) -> None:
    total = begun + int(answer.headers.get("Content-Length", -begun))
    with part.open("ab" if begun else "wb") as stream:
        for block in answer.raw.stream(_BLOCK_BYTES, decode_content=False):
            stream.write(block)
            tell(stream.tell(), total)
    if _size(part) < total:
        raise requests.ConnectionError(f"got {_size(part)} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _require_same(target: Path, checksum: str | None, size_bytes: int | None) -> None:
    if checksum is None and size_bytes is None:
        return
    kind, _, expected = (checksum or f"size:{size_bytes}").partition(":")
    got = pooch.file_hash(str(target), alg=kind) if checksum else str(_size(target))
    if got != expected:
        raise FetchError(f"expected {kind} {expected}, got {got} in the file that is there; move it away to fetch it")


def _reason(error: Exception, address: str) -> str:
    host = urlsplit(address).netloc
    if isinstance(error, requests.HTTPError):
        return f"{host} answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.SSLError):
        return f"the certificate of {host} is not accepted (behind a proxy set REQUESTS_CA_BUNDLE)"
    if isinstance(error, requests.Timeout):
        return f"{host} did not answer in {_TIMEOUT_S} s; the same command goes on from here"
    if isinstance(error, (requests.ConnectionError, BrokenTransferError)):
        return f"no connection to {host}, or it broke off; the same command goes on from here"
    return f"{host}: {error}"
