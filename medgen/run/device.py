"""Which device a run computes on: the one asked for, or an error; never quietly another."""

import re

import torch

from medgen.errors import DeviceError


def pick_device(name: str) -> torch.device:
    """Returns the device for `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`; `"auto"` is the first GPU where there is one.

    Raises:
        DeviceError: the name is none of these, or that GPU is not there.
    """
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise DeviceError(f"expected the device auto, cpu, cuda or cuda:N, got {name!r}")
    if name == "cpu":
        return torch.device("cpu")
    device = torch.device(name if ":" in name else "cuda:0")
    if not torch.cuda.is_available():
        build = "this torch is a CPU build" if torch.version.cuda is None else "no working driver or GPU was found"
        raise DeviceError(f"expected the GPU {name}, but {build}; take --device cpu, or see pytorch.org to install")
    if (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"expected the GPU {name}, but there are {torch.cuda.device_count()}; they count from 0")
    return device
