"""A network in OpenVINO's form, run on the CPU on numpy arrays: compiled for each size of window, several at a time."""

import functools
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import openvino as ov

_KEPT_SIZES = 3  # compiled forms held at a time: heads of a cohort differ in size, and each form takes memory
# Windows computed at a time: four threads or fewer do best on one window together, many do better on several.
_THREADS_OF_A_STREAM, _MOST_STREAMS = 4, 8
_HINTS = {"fp32": "f32", "mixed": "bf16", "bf16": "bf16", "fp16": "f16"}
_OFFERED = (("bf16", "BF16"), ("mixed", "BF16"), ("fp16", "FP16"), ("fp32", "FP32"))

Array = npt.NDArray[np.float32]
Group = TypeVar("Group")


@functools.cache
def _core() -> ov.Core:
    """The one OpenVINO of this process: with the last of them its libraries would be unloaded under its threads."""
    return ov.Core()


def native_precisions() -> tuple[str, ...]:
    """Returns the precisions that this CPU computes in, the fastest first; OpenVINO would quietly do others in fp32."""
    offered = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, word in _OFFERED if word in offered)


def mixed_file(file: Path) -> Path:
    """Returns where the description of a network for mixed precision lies, beside the plain one; they share weights."""
    return file.with_suffix(".mixed.xml")


class OpenVinoRequests:
    """A converted network, on arrays.

    Args:
        file: `.xml` of the intermediate representation.
        precision: one of `native_precisions`: `"fp32"`, `"bf16"`, `"fp16"`, or `"mixed"`, which is bf16 but for the
            last layers, see `medgen.infer.openvino_tail`.
        threads: of the CPU, at most.
    """

    def __init__(self, file: Path, precision: str, threads: int) -> None:
        self.file, self.precision, self.threads = file, precision, max(threads, 1)
        self._core = _core()
        described = mixed_file(file) if precision == "mixed" else file
        self._model = self._core.read_model(described, file.with_suffix(".bin"))
        self._forms: OrderedDict[tuple[tuple[int, ...], int], _Form] = OrderedDict()

    @property
    def outputs(self) -> int:
        """How many arrays the network puts out."""
        return len(self._model.outputs)

    def __call__(self, windows: Array) -> tuple[Array, ...]:
        """Returns what the network makes of `(B, C, *spatial)`, float32."""
        form = self._form(tuple(windows.shape), 1)
        request = form.take()
        request.infer([np.ascontiguousarray(windows)], share_inputs=True)
        form.idle.append(request)
        return tuple(np.array(tensor.data, dtype=np.float32) for tensor in request.output_tensors)

    def stream(self, groups: Iterable[tuple[Group, Array]]) -> Generator[tuple[Group, tuple[Array, ...]], None, None]:
        """Yields what the network makes of each group's windows, in order, while it computes on the next ones.

        An output is valid until the next one is asked for. One group alone gets all threads; several get a few each,
        which takes less waiting for one another.
        """
        waiting = iter(groups)
        first = list(islice(waiting, 2))
        if len(first) < 2:
            yield from ((group, self(windows)) for group, windows in first)
            return
        streams = max(1, min(self.threads // _THREADS_OF_A_STREAM, _MOST_STREAMS))
        flying: deque[tuple[Group, Array, _Form, ov.InferRequest]] = deque()

        def start(group: Group, windows: Array) -> None:
            form = self._form(windows.shape, streams)
            request = form.take()
            request.start_async([windows], share_inputs=True)
            flying.append((group, windows, form, request))  # the windows' memory is read until it has ended

        def land() -> tuple[Group, tuple[Array, ...]]:
            group, _, form, request = flying[0]
            request.wait()
            flying.popleft()
            form.idle.append(request)
            return group, tuple(np.asarray(tensor.data, dtype=np.float32) for tensor in request.output_tensors)

        try:
            for group, windows in chain(first, waiting):
                start(group, np.ascontiguousarray(windows))
                if len(flying) > streams:  # one more than can run waits, so that none runs dry
                    yield land()
            while flying:
                yield land()
        finally:
            for *_, request in flying:
                request.wait()

    def _form(self, shape: tuple[int, ...], streams: int) -> "_Form":
        """The network compiled for one size of input; the least recently used is forgotten."""
        key = (shape, streams)
        if key in self._forms:
            self._forms.move_to_end(key)
            return self._forms[key]
        while len(self._forms) >= _KEPT_SIZES:
            self._forms.popitem(last=False)
        model = self._model.clone()
        model.reshape(list(shape))
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,  # two runs on one machine would pin themselves to the same cores
        }
        self._forms[key] = _Form(self._core.compile_model(model, "CPU", settings))
        return self._forms[key]


@dataclass
class _Form:
    """A network compiled for one size of input, and its requests that have nothing to do: making one takes a while."""

    compiled: ov.CompiledModel
    idle: list[ov.InferRequest] = field(default_factory=list)

    def take(self) -> ov.InferRequest:
        return self.idle.pop() if self.idle else self.compiled.create_infer_request()
