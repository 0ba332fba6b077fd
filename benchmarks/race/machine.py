"""What the numbers were measured on: names, versions, and how fast it can multiply and copy at all."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from race.timed import median

_PACKAGES = ("medgen", "torch", "monai", "numpy", "nibabel", "openvino", "onnxruntime", "isal", "tensorrt")
_BLOCK = {"cpu": 2048, "cuda": 8192}
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
_REPEATS = 7


def machine_of(device: str) -> dict[str, Any]:
    """Returns the facts of this machine as plain JSON types."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "device": device,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "versions": {},
    }
    for package in _PACKAGES:
        try:
            facts["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = facts.get("model name") or platform.processor() or platform.machine()
    kinds = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    family = f"family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else ""
    return ", ".join(filter(None, (name, family, " ".join(kinds))))


def peaks_of(device: str) -> dict[str, float]:
    """Measures what the device can do at most: GFLOP/s of large matrix products, GB/s of a copy (read and written)."""
    side = _BLOCK[torch.device(device).type]
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        found[name] = 2 * side**3 / _seconds(lambda a=left, b=right: a @ b, device) / 1e9
        if name == "fp32" and torch.device(device).type == "cuda":  # what convolutions in fp32 take there by default
            torch.backends.cuda.matmul.allow_tf32 = True
            found["tf32"] = 2 * side**3 / _seconds(lambda a=left, b=right: a @ b, device) / 1e9
            torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.ones(_COPY_BYTES[torch.device(device).type] // 4, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.nbytes / _seconds(lambda: target.copy_(source), device) / 1e9
    return found


def _seconds(work: Callable[[], object], device: str) -> float:
    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(_REPEATS + 2):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - began)
    return median(times[2:])


def flop_of(network: torch.nn.Module, shape: tuple[int, ...]) -> int:
    """Counts the operations of convolutions and matrix products in one pass, a multiplication and an addition as two.

    Example:
        >>> flop_of(torch.nn.Conv3d(2, 4, 3, padding=1, bias=False), (1, 2, 5, 5, 5)) == 2 * 2 * 4 * 27 * 125
        True
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(shape))
    return int(counter.get_total_flops())
