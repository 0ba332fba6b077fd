"""What computes a network: torch, or the same network converted by OpenVINO, ONNX Runtime or TensorRT, or compiled.

An inferer may use a network in several ways (call it, `encode`, `decode`); each way that it was seen to use is
converted on its own. Nothing here judges whether a converted network is good enough: see `medgen.run.backend`.
"""

import importlib.util
import itertools
import json
import linecache
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from medgen.errors import BundleError
from medgen.infer.conversions import compile_cache, kept, without_notices
from medgen.infer.rewrite import simplified

Backend = Literal["auto", "torch", "compile", "openvino", "onnx", "tensorrt"]
BACKENDS: tuple[str, ...] = get_args(Backend)
FORWARD = ""  # the way of using a network that has no name: calling it
_TORCH = Path(torch.__file__).parent
jit: Any = torch.jit  # without types
_BOUND = "one-size.json"  # of a conversion: the ways that hold for the size of their examples alone
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime", "tensorrt": "onnxruntime"}


@dataclass(frozen=True)
class Candidate:
    """One way to compute a network.

    Attributes:
        backend: of `BACKENDS`, but not `"auto"`.
        precision: `"fp32"`, `"bf16"`, `"fp16"`, or OpenVINO's `"mixed"`: bf16, but fp32 in the last layers.
    """

    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"

    def version(self) -> str:
        """Returns name and version of what computes, `"openvino 2026.4.1"`."""
        package = _PACKAGES.get(self.backend, "torch")
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return package


@dataclass(frozen=True, eq=False)
class Original:
    """A network with what it takes to convert it.

    Attributes:
        network: in evaluation mode, where it is to run.
        ways: in which it is used, each with the shape of an input; `FORWARD` is a plain call.
        examples: makes such an input for each way; called only where something has to be converted.
        identity: what its values depend on: hash of weights, layers and config, versions; JSON types.
        name: for messages and the listing of the cache.
    """

    network: nn.Module
    ways: Mapping[str, tuple[int, ...]]
    examples: Callable[[], Mapping[str, Tensor]]
    identity: Mapping[str, Any] = field(default_factory=dict)
    name: str = "network"


class Converted:
    """Takes the place of a network: called as it is, with the same named ways.

    Args:
        ways: what computes each way.
        batch: windows that are best computed at a time; None leaves it to the inferer.

    Attributes:
        only_sizes: of windows, by way, where other sizes are left to torch; see `OneSize`.
    """

    def __init__(self, ways: Mapping[str, Callable[[Tensor], Any]], batch: int | None = None) -> None:
        self._ways = dict(ways)
        self.only_sizes = {name: way.size for name, way in ways.items() if isinstance(way, OneSize)}
        if batch is not None:
            self.batch = batch

    def __call__(self, windows: Tensor, *args: object, **kwargs: object) -> Any:  # noqa: ANN401 - as the network's
        """Returns what the network makes of `windows`.

        Raises:
            BundleError: more than windows is given, or the network was converted for other ways of using it.
        """
        if args or kwargs or FORWARD not in self._ways:
            raise BundleError("expected a network that is called with windows alone; take --backend torch")
        return self._ways[FORWARD](windows)

    def __getattr__(self, name: str) -> Callable[[Tensor], Any]:
        ways = self.__dict__.get("_ways", {})
        if name.startswith("_") or name not in ways:
            raise AttributeError(name)
        return ways[name]  # type: ignore[no-any-return]


class OneSize:
    """A converted network that holds for one size of windows alone; torch computes other ones.

    Networks may look at the size of what they are given, as MONAI's BasicUNet does to pad odd sizes. Converters follow
    one way through such code, and what they make of it fails at other sizes or, worse, computes something else.

    Args:
        way: the converted network.
        size: of windows, for which it was converted.
        otherwise: the network in torch.
    """

    def __init__(self, way: Callable[[Tensor], Any], size: Sequence[int], otherwise: Callable[[Tensor], Any]) -> None:
        self.way, self.size, self._otherwise = way, tuple(size), otherwise

    def __call__(self, windows: Tensor) -> Any:  # noqa: ANN401 - as the network's
        """Returns what the network makes of `(B, C, *spatial)`."""
        return self.way(windows) if self._fits(windows) else self._otherwise(windows)

    def stream(self, groups: Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Any]]:
        """Yields what the network makes of each group of windows, in order."""
        for fits, same in itertools.groupby(groups, key=lambda group: self._fits(group[1])):
            if fits:
                yield from self.way.stream(same)  # type: ignore[attr-defined]  # asked only of what has it
            else:
                yield from ((group, self._otherwise(windows)) for group, windows in same)

    def _fits(self, windows: Tensor) -> bool:
        return tuple(windows.shape[2:]) == self.size


class Streamed(Converted):
    """A converted network that computes several windows at a time; see `medgen.infer.windows.WindowInferer`."""

    def stream(self, groups: Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Any]]:
        """Yields what the network makes of each group of windows, in order."""
        return self._ways[FORWARD].stream(groups)  # type: ignore[attr-defined,no-any-return]


def available(device: torch.device) -> tuple[Candidate, ...]:
    """Returns what could compute a network on a device, with what is installed; the fastest, as a rule, first."""
    if device.type == "cuda":
        lowered = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        found = [Candidate(b, p) for b in ("torch", "compile") for p in (lowered, "fp32")]
        if _installed("onnxruntime") and "TensorrtExecutionProvider" in _providers():
            found = [Candidate("tensorrt", "fp16"), Candidate("tensorrt", "fp32"), *found]
        return tuple(found)
    found = []
    if _installed("openvino"):
        from medgen.infer.openvino_requests import native_precisions  # noqa: PLC0415 - half a second of import

        found += [Candidate("openvino", precision) for precision in native_precisions()]
    found += [Candidate("torch", "fp32"), Candidate("torch", "bf16")]
    found += [Candidate("compile", "fp32"), Candidate("compile", "bf16")]
    if _installed("onnxruntime") and _installed("onnxscript"):
        found.append(Candidate("onnx", "fp32"))
    return tuple(found)


def build(candidate: Candidate, original: Original) -> Any:  # noqa: ANN401 - a module, or what takes its place
    """Returns what computes a network; converts it if that was not done before.

    Raises:
        BundleError: the back end cannot convert it, or gives other values than torch.
    """
    network = original.network
    if candidate.backend == "torch":
        return network if candidate.precision == "fp32" else Lowered(network, _HALF[candidate.precision])
    if candidate.backend == "compile":
        return _compiled(candidate, original)
    try:
        if candidate.backend == "openvino":
            return _openvino(candidate, original)
        return _onnx(candidate, original)
    except BundleError:
        raise
    except Exception as error:  # whatever a converter raises on a network that it does not know
        first = str(error).strip().splitlines()[0][:160] if str(error).strip() else ""
        raise BundleError(
            f"{candidate.backend} cannot convert {original.name}: {type(error).__name__}: {first}; take --backend torch"
        ) from error


class Lowered(nn.Module):
    """A network under autocast, in all the ways that it is used.

    Args:
        network: to be called.
        dtype: `torch.bfloat16` or `torch.float16`.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the network's
        """Returns what the network returns."""
        return self._under_autocast(self.network, args, kwargs)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the network's
        try:
            return super().__getattr__(name)
        except AttributeError:
            method = getattr(super().__getattr__("network"), name)
        if not callable(method):
            return method
        return lambda *args, **kwargs: self._under_autocast(method, args, kwargs)

    def _under_autocast(self, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:  # noqa: ANN401 - as above
        device = args[0].device.type if args else "cpu"
        with torch.autocast(device, dtype=self.dtype):
            output = method(*args, **kwargs)
        return _mapped(lambda tensor: tensor.float(), output)


class _Way(nn.Module):
    """One way of using a network, as a network of its own."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, windows: Tensor) -> Any:  # noqa: ANN401 - as the network's
        return self.network(windows) if self.name == FORWARD else getattr(self.network, self.name)(windows)


def _openvino(candidate: Candidate, original: Original) -> Converted:
    from medgen.infer.openvino_network import OpenVinoNetwork, convert  # noqa: PLC0415 - half a second of import

    folder, threads = _converted(candidate, original, ".xml", convert), torch.get_num_threads()

    def load(file: Path) -> OpenVinoNetwork:
        return OpenVinoNetwork(file, candidate.precision, threads)

    kind = Streamed if FORWARD in original.ways else Converted
    return kind(_ways(original, folder, ".xml", load), OpenVinoNetwork.batch)


def _onnx(candidate: Candidate, original: Original) -> Converted:
    from medgen.infer.onnx_network import OnnxNetwork, export  # noqa: PLC0415 - a second of import

    folder, threads = _converted(candidate, original, ".onnx", export), torch.get_num_threads()
    tensorrt, half = candidate.backend == "tensorrt", candidate.precision == "fp16"

    def load(file: Path) -> OnnxNetwork:
        return OnnxNetwork(file, tensorrt=tensorrt, half=half, threads=threads)

    return Converted(_ways(original, folder, ".onnx", load))


def _ways(
    original: Original, folder: Path, suffix: str, load: Callable[[Path], Callable[[Tensor], Any]]
) -> dict[str, Callable[[Tensor], Any]]:
    bound = set(json.loads((folder / _BOUND).read_text(encoding="utf-8")))
    ways: dict[str, Callable[[Tensor], Any]] = {}
    for name, shape in original.ways.items():
        way = load(folder / f"{_file_name(name)}{suffix}")
        ways[name] = OneSize(way, shape[2:], _Way(original.network, name)) if name in bound else way
    return ways


def _converted(
    candidate: Candidate, original: Original, suffix: str, convert: Callable[[nn.Module, Tensor, Path], None]
) -> Path:
    """Returns the folder with a file for each way; the precision is chosen when it is loaded."""
    kind = "openvino" if candidate.backend == "openvino" else "onnx"

    def make(folder: Path) -> None:
        network, bound = simplified(original.network), []
        with _on_cpu(network):
            for name, example in original.examples().items():
                way, windows = _Way(network, name).eval(), example.detach().cpu()
                convert(way, windows, folder / f"{_file_name(name)}{suffix}")
                bound += [name] if _looks_at_sizes(way, windows) else []
        (folder / _BOUND).write_text(json.dumps(bound), encoding="utf-8")

    sizes = {name: list(shape) for name, shape in original.ways.items()}
    parts = {**original.identity, "backend": candidate.version(), "ways": sizes}
    return kept(kind, parts, make, about=f"{original.name} for {candidate.version()}")


def _looks_at_sizes(network: nn.Module, windows: Tensor) -> bool:
    """Says whether Python code in a network depends on tensors, which is where a tracer warns of what it cannot see."""
    with torch.no_grad(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        jit.trace(network, windows, check_trace=False, strict=False)
    return any(
        issubclass(told.category, jit.TracerWarning) and not _is_check(told.filename, told.lineno) for told in seen
    )


def _is_check(file: str, line: int) -> bool:
    """Says whether a line only refuses sizes, or is torch's own, which is written for all of them."""
    here, after = (linecache.getline(file, number).strip() for number in (line, line + 1))
    return Path(file).is_relative_to(_TORCH) or here.startswith("assert") or after.startswith("raise")


def _compiled(candidate: Candidate, original: Original) -> Converted:
    lowered = build(Candidate("torch", candidate.precision), original)
    # On a GPU, CUDA graphs save the launching of every kernel.
    parameter = next(original.network.parameters(), None)
    mode = "reduce-overhead" if parameter is not None and parameter.is_cuda else "default"
    ways = {}
    for name in original.ways:
        with without_notices():  # of its own parts, on import
            compiled = torch.compile(_Way(lowered, name).eval(), dynamic=False, mode=mode)
        ways[name] = _keeping_cache(compiled)
    return Converted(ways)


def _keeping_cache(compiled: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def run(windows: Tensor) -> Any:  # noqa: ANN401 - as the network's
        with compile_cache(), without_notices():
            return _mapped(torch.clone, compiled(windows.contiguous()))  # a CUDA graph writes over its last output

    return run


@contextmanager
def _on_cpu(network: nn.Module) -> Iterator[None]:
    """Has a network on the CPU for the block: converters trace it there."""
    parameter = next(network.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    network.cpu()
    try:
        yield
    finally:
        network.to(device)


def _mapped(change: Callable[[Tensor], Tensor], output: Any) -> Any:  # noqa: ANN401 - a tensor or several
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple | list):
        return type(output)(_mapped(change, one) for one in output)
    return {key: _mapped(change, one) for key, one in output.items()} if isinstance(output, dict) else output


def _file_name(way: str) -> str:
    return way or "forward"


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _providers() -> list[str]:
    import onnxruntime  # noqa: PLC0415 - only where it is installed

    return list(onnxruntime.get_available_providers())
