"""What to do when a network does not fit: recognise it, take the next lighter load, give up with a clear error.

Where a result does not fit it lies in a file. And what makes it fast where it fits: memory that is kept while a network
computes.
"""

import ctypes
import gc
import logging
import math
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medgen.errors import DeviceError, TooLargeError
from medgen.read.memory import available_bytes

logger = logging.getLogger(__name__)

# An allocation can also fail inside a library that torch calls; these are the words they use.
_ALLOCATION_FAILURES = (
    "can't allocate memory",
    "not enough memory",
    "_STATUS_ALLOC_FAILED",
    "CUDA out of memory",
)
_MOST_WINDOWS = 8  # beyond this a modern GPU is busy anyway, and the tail of a volume wastes more
_SHARE_OF_FREE_MEMORY = 0.8
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # parameters of mallopt, in glibc's malloc.h
# glibc raises its thresholds from 128 kB to these as blocks are freed, until one is set: then that has to be done here.
_USUAL_TRIM_THRESHOLD, _USUAL_MMAP_THRESHOLD = 64 * 2**20, 32 * 2**20
_USUAL_MMAP_MAX, _LARGEST_INT = 65536, 2**31 - 1


@dataclass(frozen=True)
class Load:
    """What is held in the device's memory at once; `lighter` is the way down.

    Attributes:
        roi: voxels of one window along each spatial axis.
        batch: windows in one forward pass.
        on_host: whether windows are put together in host memory instead of the device's.
    """

    roi: tuple[int, ...]
    batch: int
    on_host: bool

    def lighter(self, multiples: Sequence[int]) -> "Load":
        """Returns the next smaller load: half the batch, then host accumulation, then half the longest side.

        A side stays a multiple of its own of `multiples`, so that the network still divides it.

        Raises:
            DeviceError: one window of the smallest size does not fit either.
        """
        if self.batch > 1:
            return replace(self, batch=self.batch // 2)
        if not self.on_host:
            return replace(self, on_host=True)
        longest = max(self.roi)
        axis = self.roi.index(longest)
        half = max(longest // 2 // multiples[axis], 1) * multiples[axis]
        if half >= longest:
            raise DeviceError(
                f"expected memory for one window of at least {multiples[axis]} voxels a side, but {self.describe()} "
                "does not fit; free the device, or take --device cpu"
            )
        return replace(self, roi=(*self.roi[:axis], half, *self.roi[axis + 1 :]))

    def describe(self) -> str:
        """Returns the load in a few words: `"batch 2 of 96x96x96"`."""
        place = ", put together in host memory" if self.on_host else ""
        return f"batch {self.batch} of {'x'.join(map(str, self.roi))}{place}"


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error means that an allocation failed, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATION_FAILURES)


def release_memory(device: torch.device) -> None:
    """Gives back what a failed attempt left behind; call it outside the `except` that still holds the frames."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Returns the bytes of a CUDA device that this process could still take, its own unused cache included."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def batch_that_fits(free: int, bytes_per_window: int, most: int = _MOST_WINDOWS) -> int:
    """Returns the largest power of two of windows that leaves a fifth of the free memory alone, at least 1.

    Example:
        >>> batch_that_fits(free=10_000, bytes_per_window=1_500)
        4
    """
    fitting = int(free * _SHARE_OF_FREE_MEMORY) // max(bytes_per_window, 1)
    return min(1 << int(math.log2(fitting)), most) if fitting >= 1 else 1


def fits(need: int, free: int) -> bool:
    """Says whether `need` bytes may stay on the device: at most half of what is free, the rest is the network's."""
    return need <= free // 2


def host_budget() -> int:
    """Returns the bytes of host memory that a result may take: half of what is free, the rest is for those after it."""
    return available_bytes() // 2


def zeros_in_a_file(shape: Sequence[int]) -> Tensor:
    """Returns float32 zeros in a file of the folder for temporary files (`TMPDIR`), which is gone with the tensor.

    The file has no name, so that it is gone as well if the process is killed. The folder should be on a disk: some
    systems keep `/tmp` in memory.

    Raises:
        TooLargeError: the disk has no room for it.
    """
    size, folder = 4 * math.prod(shape), tempfile.gettempdir()
    logger.info("%.1f GB are set aside in a file in %s", size / 1e9, folder)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # else writing to a full disk would end the process, without an error
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            pages = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise TooLargeError(
            f"expected {size / 1e9:.1f} GB for a result, in memory or in {folder}, got: {error.strerror}; "
            "let TMPDIR name a folder on a larger disk, or run it where there is more memory"
        ) from error
    return torch.frombuffer(pages, dtype=torch.float32).view(tuple(shape))


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process where it is glibc, whose allocator can be told."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


class _Keeping:
    """How many of this process's threads ask for kept memory; the first one turns it on, the last one off."""

    def __init__(self) -> None:
        self._lock, self._asking, self._library = threading.Lock(), 0, _glibc()

    def change(self, by: int) -> None:
        with self._lock:
            self._asking += by
            if self._library is None:
                return
            if by > 0 and self._asking == 1:
                self._library.mallopt(_MMAP_MAX, 0)
                self._library.mallopt(_TRIM_THRESHOLD, _LARGEST_INT)
            elif self._asking == 0:
                self._library.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)
                self._library.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP_THRESHOLD)
                self._library.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM_THRESHOLD)
                self._library.malloc_trim(0)


_keeping = _Keeping()


@contextmanager
def kept_memory(device: torch.device | str = "cpu") -> Iterator[None]:
    """Has this process keep what it frees for what it allocates next, until the end of the block; then gives it back.

    By default glibc returns every large block to the system at once, and gets it anew a moment later, page by page and
    cleared: up to a quarter of a training step's time on the CPU. Values do not change. The process is larger then, as
    blocks of other sizes do not fill each other's places. For a network on another device, and on systems without
    glibc, nothing happens. Blocks may lie within each other.
    """
    if torch.device(device).type != "cpu":
        yield
        return
    _keeping.change(+1)
    try:
        yield
    finally:
        _keeping.change(-1)
