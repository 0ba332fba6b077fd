"""How a server that is down is waited for, and how one that will not give a single thing is not waited for for ever."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import requests
from filelock import FileLock, Timeout

Pause = Callable[[float], object]
Made = TypeVar("Made")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_TRIES = 4  # of one thing, at a server that answers
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses of a server that may do it later
_LOOK_AGAIN_S = 0.2


class AnswerError(ValueError):
    """The server's answer is not what it should be; the message may be shown to anyone."""


class CutShortError(AnswerError):
    """An answer that began ended before its end."""


class StoppedError(AnswerError):
    """Who waits has been asked to end."""

    def __init__(self) -> None:
        super().__init__("stopped before it was done")


class Patience:
    """Does steps at one server again, with longer and longer pauses, for as long as that makes sense.

    A server that does not answer is waited for. One that answers that it cannot do something is asked four times. Once
    a wait has been in vain, everything is tried once only, until something succeeds: fifty series at a server that is
    gone are not worth fifty waits.

    Args:
        longest_s: how long a server that does not answer is waited for `[s]`.
        pause: waits for so many seconds; what it returns is true when there is no more to wait for.

    Attributes:
        tell: is told when a wait begins.
    """

    def __init__(self, longest_s: float, pause: Pause = time.sleep) -> None:
        self._longest_s, self._pause = longest_s, pause
        self._in_vain = False
        self.tell: Callable[[str], object] = lambda text: None

    def __call__(self, step: Callable[[], Made]) -> Made:
        """Returns what a step returns, in the end.

        Raises:
            requests.RequestException, AnswerError: what the step raised last.
        """
        began, waited, pause_s, answers = time.monotonic(), 0.0, _FIRST_PAUSE_S, 0
        while True:
            try:
                made = step()
            except (requests.RequestException, CutShortError) as error:
                if not _may_pass(error):
                    raise
                if _was_answered(error):
                    answers += 1
                    if answers >= _TRIES:
                        raise
                elif self._gives_up(error, waited, max(time.monotonic() - began, waited) + pause_s):
                    raise
                wait_s = _asked_for(error) or pause_s
            else:
                self._in_vain = False
                return made
            self.wait(wait_s)
            waited, pause_s = waited + wait_s, min(2 * pause_s, _LONGEST_PAUSE_S)

    def _gives_up(self, error: Exception, waited_s: float, next_s: float) -> bool:
        self._in_vain = self._in_vain or next_s > self._longest_s
        if not waited_s and not self._in_vain:
            self.tell(f"the server does not answer: {why(error)}; it is waited for, up to {self._longest_s:.0f} s")
        return self._in_vain

    def wait(self, seconds: float = 0.0) -> None:
        """Waits, or only looks whether there is more to wait for.

        Raises:
            StoppedError: there is not.
        """
        if self._pause(seconds):
            raise StoppedError

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """Holds a lock between processes; who is killed gives it free.

        Raises:
            StoppedError: while it was waited for.
        """
        lock = FileLock(path)
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                self.wait(_LOOK_AGAIN_S)
        try:
            yield
        finally:
            lock.release()


def _may_pass(error: Exception) -> bool:
    status = status_of(error)
    if status is not None:
        return status in _PASSING
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, CutShortError)
    return isinstance(error, passing) and not isinstance(error, requests.exceptions.SSLError)


def _was_answered(error: Exception) -> bool:
    broken_off = (requests.exceptions.ChunkedEncodingError, CutShortError)
    return status_of(error) is not None or isinstance(error, broken_off)


def _asked_for(error: Exception) -> float:
    """How long the server asks to be left alone `[s]`; 0 where it does not, or for too long."""
    said = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return float(said) if said.isdecimal() and float(said) <= _LONGEST_PAUSE_S else 0.0


def status_of(error: Exception) -> int | None:
    """Returns the status that a server answered with, None where there was no answer."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def why(error: Exception) -> str:
    """Says what went wrong, without the URL, which holds UIDs and what was asked for."""
    status = status_of(error)
    if status is not None:
        return f"it answers {status}{_HINTS.get(status, '')}"
    if isinstance(error, AnswerError):
        return str(error)
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate cannot be verified; $REQUESTS_CA_BUNDLE may name your authority's"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "its answer was cut short"
    return "it cannot be reached" if isinstance(error, requests.RequestException) else type(error).__name__


_CREDENTIALS = "; check $MEDGEN_DICOMWEB_TOKEN, $MEDGEN_DICOMWEB_USER and $MEDGEN_DICOMWEB_PASSWORD, or ~/.netrc"
_HINTS = {401: _CREDENTIALS, 403: _CREDENTIALS, 404: "; check the path in the address, such as /dicom-web"}


def parsed(content: bytes) -> object:
    """Returns the JSON of an answer.

    Raises:
        AnswerError: it is none.
    """
    try:
        return json.loads(content or b"[]")
    except ValueError:
        raise AnswerError("expected DICOM JSON as answer, got something else; check the address") from None
