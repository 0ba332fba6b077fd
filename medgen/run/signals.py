"""The two signals that ask a process to end, answered once in an orderly way."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ASKS_TO_END = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def on_first_signal(answer: Callable[[int], None]) -> Iterator[None]:
    """Calls `answer` with the number of the first SIGINT or SIGTERM within the block; a second one ends the process.

    `answer` runs between two instructions of the main thread: it must take no lock and print nothing. A signal that the
    process was started to ignore stays ignored. Does nothing outside of the main thread, where Python allows no
    handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ASKS_TO_END}
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def handler(number: int, _frame: FrameType | None) -> None:
        for again in ours:
            signal.signal(again, signal.SIG_DFL)
        answer(number)

    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
