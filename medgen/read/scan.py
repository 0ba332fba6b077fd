"""The headers of many files, looked at by several threads."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

# Threads hide the latency of a network disk; batches keep them from passing the interpreter to and fro for each file.
_THREADS = 4
_BATCH = 32

T = TypeVar("T")
R = TypeVar("R")


def scan(items: Sequence[T], look: Callable[[T], R]) -> list[R]:
    """Returns what `look` says of each item, in their order."""

    def some(batch: Sequence[T]) -> list[R]:
        return [look(item) for item in batch]

    batches = [items[i : i + _BATCH] for i in range(0, len(items), _BATCH)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(itertools.chain.from_iterable(pool.map(some, batches)))
