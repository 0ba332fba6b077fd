"""How a DICOMweb server is spoken to: by HTTP, with credentials that stay out of addresses, messages and logs."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import requests

from medgen.errors import NoInputError

_log = logging.getLogger(__name__)

_CONNECT_S = 10.0
_THIS_MACHINE = {"127.0.0.1", "::1", "localhost"}

# What it says when headers are odd, or at lower levels, holds whole URLs.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)


class Connection:
    """A server at a URL.

    Credentials are `$MEDGEN_DICOMWEB_TOKEN` (bearer), or `$MEDGEN_DICOMWEB_USER` and `$MEDGEN_DICOMWEB_PASSWORD`, or
    those of `~/.netrc`. Certificates are verified; `$REQUESTS_CA_BUNDLE` names those of one's own authority.

    Args:
        url: without credentials.
        timeout_s: how long the server may stay silent once it is connected `[s]`.

    Raises:
        NoInputError: the URL has another form, or holds credentials.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = _checked(url)
        self._session = session_with_credentials()
        parts = urlsplit(url)
        known = self._session.auth or requests.utils.get_netrc_auth(url)
        if known and parts.scheme == "http" and parts.hostname not in _THIS_MACHINE:
            _log.warning("credentials go to the DICOMweb server as anyone on the way can read them; https hides them")
        self._timeout_s = (_CONNECT_S, timeout_s)

    @contextlib.contextmanager
    def asked(self, method: str, path: str, **how: Any) -> Iterator[requests.Response]:  # noqa: ANN401
        """Yields the answer to a request, as `requests` takes it.

        Raises:
            requests.RequestException: there is none, or it is a refusal.
        """
        with self._session.request(method, f"{self.url}/{path}", timeout=self._timeout_s, **how) as answer:
            answer.raise_for_status()
            yield answer


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        right = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        right = False
    if not right:
        raise NoInputError("expected dicomweb+http://HOST:PORT/PATH or dicomweb+https://..., got another address")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise NoInputError(
            "expected an address without credentials and parameters, which logs would show, got one with them; set "
            "$MEDGEN_DICOMWEB_TOKEN, or $MEDGEN_DICOMWEB_USER and $MEDGEN_DICOMWEB_PASSWORD, or use ~/.netrc"
        )
    return url.rstrip("/")


def session_with_credentials() -> requests.Session:
    """Returns a session that shows the credentials; see `Connection`."""
    session = requests.Session()  # which verifies certificates, and knows ~/.netrc
    token = os.environ.get("MEDGEN_DICOMWEB_TOKEN", "").strip()
    user, password = (os.environ.get(f"MEDGEN_DICOMWEB_{name}") for name in ("USER", "PASSWORD"))
    if token:
        session.auth = lambda request: _with_bearer(request, token)
    elif user and password:
        session.auth = (user.encode(), password.encode())  # as text, letters beyond Latin-1 would fail
    return session


def _with_bearer(request: requests.PreparedRequest, token: str) -> requests.PreparedRequest:
    request.headers["Authorization"] = f"Bearer {token}"
    return request
