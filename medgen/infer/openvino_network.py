"""A network that OpenVINO runs on the CPU: converted once, fed with torch tensors; see `openvino_requests`.

What comes in and goes out are torch tensors in host memory; the arithmetic in between has the precision asked for.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

from medgen.infer.conversions import without_notices
from medgen.infer.openvino_requests import OpenVinoRequests, mixed_file
from medgen.infer.openvino_tail import split_last_weights, write_mixed

Outputs = Tensor | tuple[Tensor, ...]


def convert(network: nn.Module, example: Tensor, file: Path) -> None:
    """Writes a network as OpenVINO has it: `file` and its `.bin` in fp32, and `mixed_file(file)`.

    Args:
        network: on the CPU, in evaluation mode.
        example: an input `(B, C, *spatial)`; batch and spatial axes may differ later.
        file: `.xml`.
    """
    free = ov.PartialShape([-1, example.shape[1], *[-1] * (example.ndim - 2)])
    with torch.no_grad(), without_notices():
        model = ov.convert_model(network, example_input=example, input=[free])
    split_last_weights(model)
    ov.save_model(model, file, compress_to_fp16=False)
    write_mixed(model, file, mixed_file(file))


class OpenVinoNetwork:
    """A converted network.

    Args:
        file: what `convert` wrote.
        precision: one of `medgen.infer.openvino_requests.native_precisions`.
        threads: of the CPU, at most.

    Attributes:
        requests: the same on numpy arrays.
    """

    batch = 1  # windows in one pass: more only take more memory

    def __init__(self, file: Path, precision: str, threads: int) -> None:
        self.requests = OpenVinoRequests(file, precision, threads)

    def __call__(self, windows: Tensor) -> Outputs:
        """Returns what the network makes of `(B, C, *spatial)`, float32."""
        return _tensors(self.requests(_array(windows)))

    def stream(self, groups: Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Outputs]]:
        """Yields what the network makes of each group's windows, in order, while it computes on the next ones.

        An output is valid until the next one is asked for.
        """
        streamed = self.requests.stream((group, _array(windows)) for group, windows in groups)
        try:
            for group, arrays in streamed:
                yield group, _tensors(arrays)
        finally:
            streamed.close()  # what is on its way still reads the windows' memory


def _array(windows: Tensor) -> np.ndarray[Any, Any]:
    return windows.detach().float().numpy()


def _tensors(arrays: tuple[np.ndarray[Any, Any], ...]) -> Outputs:
    tensors = tuple(map(torch.from_numpy, arrays))
    return tensors[0] if len(tensors) == 1 else tensors
