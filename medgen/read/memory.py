"""Whether a volume fits: a system that runs out of memory kills the whole run, so one that is too large is refused."""

import math
from collections.abc import Sequence
from pathlib import Path

import psutil

from medgen.errors import TooLargeError

# From reading to writing, resampling and pictures included: `benchmarks/memory.py` measured 59.
PEAK_BYTES_PER_VOXEL = 62
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_LIMITS = (  # of version 2 and version 1: folder, limit, use, and what of the use are files that need not stay
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def require_memory(shape: Sequence[int], where: str) -> None:
    """Refuses a volume that would not fit beside what memory holds now.

    Args:
        shape: of the volume.
        where: file or series, for the message.

    Raises:
        TooLargeError: with what it needs and what is there.
    """
    need, free = math.prod(shape) * PEAK_BYTES_PER_VOXEL, available_bytes()
    if need > free:
        size = "x".join(map(str, shape))
        raise TooLargeError(
            f"{where}: expected {need / 1e9:.1f} GB for {size} voxels, {free / 1e9:.1f} GB are free; "
            "run it where there is more memory, or resample it first"
        )


def available_bytes() -> int:
    """Returns the memory that this process could still take: the machine's, or less where a job scheduler limits it."""
    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def _left_in_groups() -> list[int]:
    """What the control groups leave, from this process's own up to the root."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    left = []
    for kind, limit, use, files in _LIMITS:
        own = next((line.split(":", 2)[2] for line in lines if line.split(":", 2)[1] == kind), None)
        folder = _CONTROL_GROUPS / kind / (own or "/").lstrip("/")
        for group in [folder, *folder.parents] if own is not None else []:
            left += _left(group / limit, group / use, files)
            if group == _CONTROL_GROUPS:
                break
    return left


def _left(limit: Path, use: Path, files: str) -> list[int]:
    try:
        used = int(use.read_text(encoding="ascii")) - _statistic(use.parent / "memory.stat", files)
        return [max(0, int(limit.read_text(encoding="ascii")) - used)]
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return []


def _statistic(file: Path, name: str) -> int:
    """Returns one of a group's statistics [bytes]; 0 where it is not told."""
    try:
        lines = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
    except OSError:
        return 0
    return next((int(line[1]) for line in lines if line[0] == name), 0)
