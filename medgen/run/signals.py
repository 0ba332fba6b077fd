"""The two signals that ask a process to end, answered once in an orderly way."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ASKS_TO_END = (signal.SIGINT, signal.SIGTERM)
_POLL_SECONDS = 0.1


@contextmanager
def on_first_signal(answer: Callable[[int], None]) -> Iterator[None]:
    """Calls `answer` with the number of the first SIGINT or SIGTERM within the block; a second one ends the process.

    `answer` runs between two instructions of the main thread: it must take no lock and print nothing. A signal that the
    process was started to ignore stays ignored. Does nothing outside of the main thread, where Python allows no
    handlers.
    """

    def handler(ours: list[signal.Signals], number: int) -> None:
        for again in ours:
            signal.signal(again, signal.SIG_DFL)
        answer(number)

    with _answered(handler):
        yield


class Stop:
    """Whether a process that goes on until it is stopped has been asked to end.

    Not a `threading.Event`: a signal that arrives while the main thread waits for one would wait for a lock that the
    very thread holds.

    Attributes:
        asked: set by `on_signals`, or by anyone.
    """

    def __init__(self) -> None:
        self.asked = False

    def wait(self, seconds: float) -> bool:
        """Returns whether the process is to end, at once if so, else after so many seconds."""
        until = time.monotonic() + seconds
        while not self.asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
        return self.asked

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Has SIGINT and SIGTERM within the block ask to end, every time, but where a run within answers itself."""

        def handler(_ours: list[signal.Signals], _number: int) -> None:
            self.asked = True

        with _answered(handler):
            yield


@contextmanager
def _answered(answer: Callable[[list[signal.Signals], int], None]) -> Iterator[None]:
    """Calls `answer` with the signals that are answered and the one that came, within the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ASKS_TO_END}
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def handler(number: int, _frame: FrameType | None) -> None:
        answer(ours, number)

    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
