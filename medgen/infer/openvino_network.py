"""A network that OpenVINO runs on the CPU: converted once, compiled for each size of window, several windows at a time.

What comes in and goes out are torch tensors in host memory; the arithmetic in between has the precision asked for.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

from medgen.infer.conversions import without_notices

_KEPT_SIZES = 3  # compiled forms held at a time: heads of a cohort differ in size, and each form takes memory
_MOST_STREAMS = 8
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

Outputs = Tensor | tuple[Tensor, ...]


def native_precisions() -> tuple[str, ...]:
    """Returns the precisions that this CPU computes in; OpenVINO would quietly do others in fp32."""
    offered = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, word in (("fp32", "FP32"), ("bf16", "BF16"), ("fp16", "FP16")) if word in offered)


def convert(network: nn.Module, example: Tensor, file: Path) -> None:
    """Writes a network as OpenVINO's intermediate representation, `file` and its `.bin`, in fp32.

    Args:
        network: on the CPU, in evaluation mode.
        example: an input `(B, C, *spatial)`; batch and spatial axes may differ later.
        file: `.xml`.
    """
    free = ov.PartialShape([-1, example.shape[1], *[-1] * (example.ndim - 2)])
    with torch.no_grad(), without_notices():
        model = ov.convert_model(network, example_input=example, input=[free])
    ov.save_model(model, file, compress_to_fp16=False)


class OpenVinoNetwork:
    """A converted network.

    Args:
        file: what `convert` wrote.
        precision: `"fp32"`, `"bf16"` or `"fp16"`, one of `native_precisions`.
        threads: of the CPU, at most.
    """

    batch = 1  # windows in one pass: more only take more memory

    def __init__(self, file: Path, precision: str, threads: int) -> None:
        self._core = ov.Core()
        self._model = self._core.read_model(file)
        self._precision = precision
        self._threads = max(threads, 1)
        self._compiled: OrderedDict[tuple[tuple[int, ...], int], ov.CompiledModel] = OrderedDict()

    def __call__(self, windows: Tensor) -> Outputs:
        """Returns what the network makes of `(B, C, *spatial)`, float32."""
        request = self._form(tuple(windows.shape), 1).create_infer_request()
        request.infer([_array(windows)], share_inputs=True)
        return _outputs(request, copied=True)

    def stream(self, groups: Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Outputs]]:
        """Yields what the network makes of each group's windows, in order, while it computes on the next ones.

        An output is valid until the next one is asked for. One group alone gets all threads; several get a few each,
        which takes less waiting for one another.
        """
        waiting = iter(groups)
        first = list(islice(waiting, 2))
        if len(first) < 2:
            yield from ((group, self(windows)) for group, windows in first)
            return
        streams = min(self._threads, _MOST_STREAMS)
        free: dict[tuple[int, ...], list[ov.InferRequest]] = {}
        flying: deque[tuple[Any, Tensor, ov.InferRequest]] = deque()

        def start(group: object, windows: Tensor) -> None:
            shape = tuple(windows.shape)
            idle = free.setdefault(shape, [])
            request = idle.pop() if idle else self._form(shape, streams).create_infer_request()
            request.start_async([_array(windows)], share_inputs=True)
            flying.append((group, windows, request))  # the windows' memory is read until it has ended

        def land() -> tuple[Any, Outputs]:
            group, windows, request = flying[0]
            request.wait()
            flying.popleft()
            free[tuple(windows.shape)].append(request)
            return group, _outputs(request, copied=False)

        try:
            for group, windows in chain(first, waiting):
                start(group, windows)
                if len(flying) > streams:  # one more than can run waits, so that none runs dry
                    yield land()
            while flying:
                yield land()
        finally:
            for _, _, request in flying:
                request.wait()

    def _form(self, shape: tuple[int, ...], streams: int) -> ov.CompiledModel:
        """The network compiled for one size of input; the least recently used is forgotten."""
        key = (shape, streams)
        if key in self._compiled:
            self._compiled.move_to_end(key)
            return self._compiled[key]
        while len(self._compiled) >= _KEPT_SIZES:
            self._compiled.popitem(last=False)
        model = self._model.clone()
        model.reshape(list(shape))
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self._threads,
            "ENABLE_CPU_PINNING": False,  # two runs on one machine would pin themselves to the same cores
        }
        self._compiled[key] = self._core.compile_model(model, "CPU", settings)
        return self._compiled[key]


def _array(windows: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(windows.detach().float().numpy())


def _outputs(request: ov.InferRequest, *, copied: bool) -> Outputs:
    arrays = [tensor.data for tensor in request.output_tensors]
    tensors = tuple(torch.from_numpy(np.array(a, dtype=np.float32) if copied else a).float() for a in arrays)
    return tensors[0] if len(tensors) == 1 else tensors
