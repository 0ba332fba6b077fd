"""Which back end computes a bundle's network: the one asked for, or the fastest that gives the same on a reference.

What counts as the same is the bundle's to say (`tolerance` in its metadata). Reference and verdict are one for every
case and every run on a machine, so that no result depends on which case came first.
"""

import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import medgen
from medgen.errors import BundleError, MedgenError
from medgen.infer.backends import BACKENDS, FORWARD, Candidate, Original, available, build
from medgen.infer.conversions import kept, network_sha256
from medgen.infer.memory import kept_memory
from medgen.run.bundle import OpenBundle
from medgen.run.choice import Choice, Tolerance, Verdict
from medgen.run.reference_case import reference_inputs

PRECISIONS = ("auto", "fp32", "mixed", "bf16", "fp16")
_CHOICE = "choice.json"
_BEST_DB = 200.0  # of outputs that are equal
_SAME_DB = 25.0  # below this an output is not the network's in a coarser precision, but another
Tell = Callable[[str], None]


def with_backend(
    bundle: OpenBundle, backend: str = "auto", precision: str = "auto", tell: Tell = lambda text: None
) -> OpenBundle:
    """Returns an open bundle whose network is computed by a back end.

    Args:
        bundle: as `open_bundle` has it, on torch.
        backend: `"auto"` takes the fastest that passes, or what `$MEDGEN_BACKEND` names.
        precision: of `PRECISIONS`; `"auto"` takes the fastest that passes; one that is named need not pass.
        tell: is told why it takes long, where it does.

    Raises:
        BundleError: there is no such back end here, or it cannot compute this network.
    """
    candidates = _candidates(bundle.device, backend, precision)
    if not candidates:
        raise BundleError(_not_here(bundle.device, backend, precision))
    only = candidates[0]
    if len(candidates) == 1 and only.backend == "torch":
        original = Original(bundle.network, {}, dict, name=bundle.name)
        network = _network_of(only, bundle, original)
        return _taken(bundle, only, network, Choice(only.backend, only.precision, only.version()))
    with kept_memory(bundle.device):
        return _Trial(bundle, candidates, checked=precision == "auto", tell=tell).outcome()


class _Trial:
    """One bundle's candidates, compared on its reference; what was found once is looked up afterwards."""

    def __init__(self, bundle: OpenBundle, candidates: Sequence[Candidate], *, checked: bool, tell: Tell) -> None:
        self._bundle, self._candidates, self._tell = bundle, candidates, tell
        self._tolerance = Tolerance.of(bundle.metadata.fields, bundle.name) if checked else None
        self._identity = {
            "network": network_sha256(bundle.network),
            "settings": dict(bundle.settings),
            "versions": {"medgen": medgen.__version__, "torch": torch.__version__, "monai": version("monai")},
        }

    def outcome(self) -> OpenBundle:
        """Returns the bundle on the best candidate.

        Raises:
            BundleError: none can compute it.
        """
        parts = {
            **self._identity,
            "candidates": [f"{candidate} by {candidate.version()}" for candidate in self._candidates],
            "tolerance": asdict(self._tolerance) if self._tolerance else None,
            "machine": f"{_processor(self._bundle.device)}, {torch.get_num_threads()} threads",
        }
        folder = kept("choices", parts, self._decide, about=f"what computes {self._bundle.name} here")
        found = json.loads((folder / _CHOICE).read_text(encoding="utf-8"))
        verdicts = tuple(Verdict(**verdict) for verdict in found["verdicts"])
        passed = [verdict for verdict in verdicts if not verdict.refused]
        if not passed:
            raise BundleError("; ".join(verdict.refused for verdict in verdicts))
        best = min(passed, key=lambda verdict: verdict.seconds)
        backend, precision = best.candidate.split()
        candidate = Candidate(backend, precision)
        network = _network_of(candidate, self._bundle, self._original(found["ways"]))
        only_sizes = getattr(network, "only_sizes", {})
        choice = Choice(backend, precision, candidate.version(), best.psnr_db, verdicts, only_sizes)
        return _taken(self._bundle, candidate, network, choice)

    def _original(self, ways: Mapping[str, Sequence[int]]) -> Original:
        shapes = {name: tuple(shape) for name, shape in ways.items()}
        return Original(self._bundle.network, shapes, self._examples, self._identity, self._bundle.name)

    @functools.cached_property
    def _inputs(self) -> list[Tensor]:
        return [part.to(self._bundle.device) for part in reference_inputs(self._bundle)]

    @functools.cached_property
    def _shown(self) -> "tuple[list[Tensor], Verdict, _Recorder]":
        """What torch in fp32 makes of the reference, how fast, and how the inferer uses the network on the way."""
        recorder = _Recorder(self._bundle.network)
        with _precision_of(self._bundle.inferer, "fp32"):
            first = [self._infer(part, recorder) for part in self._inputs]
            seconds = self._seconds(self._bundle.network)
        return first, Verdict("torch fp32", seconds, _BEST_DB, 0.0), recorder

    def _examples(self) -> Mapping[str, Tensor]:
        return self._shown[2].examples

    def _decide(self, folder: Path) -> None:
        self._tell(
            f"{self._bundle.name} runs here for the first time: its network is converted and compared with torch on a "
            "simulated scan; later runs find it in the cache"
        )
        expected, plain, recorder = self._shown
        ways = {name: list(example.shape) for name, example in recorder.examples.items()}
        verdicts = []
        for candidate in self._candidates:
            if str(candidate) == plain.candidate:
                verdicts.append(plain)
            elif recorder.differentiated and candidate.backend != "torch":
                verdicts.append(Verdict(str(candidate), refused=f"{self._bundle.name} needs gradients of its network"))
            else:
                verdicts.append(self._judge(candidate, expected, ways))
        found = {"ways": ways, "verdicts": [asdict(verdict) for verdict in verdicts]}
        (folder / _CHOICE).write_text(json.dumps(found, indent=1), encoding="utf-8")
        self._tell("; ".join(map(_in_words, verdicts)))

    def _judge(self, candidate: Candidate, expected: Sequence[Tensor], ways: Mapping[str, Sequence[int]]) -> Verdict:
        try:
            network = _network_of(candidate, self._bundle, self._original(ways))
            with _precision_of(self._bundle.inferer, _inferers_precision(candidate)):
                got = [self._infer(part, network) for part in self._inputs]
                seconds = self._seconds(network)
        except (MedgenError, RuntimeError) as error:  # RuntimeError: what a converted network raises on another size
            return Verdict(str(candidate), refused=f"{candidate}: {str(error).splitlines()[0]}")
        psnr, largest, extent = _agreement(expected, got)
        refused = ""
        if self._tolerance and self._tolerance.broken_by(psnr, largest, extent):
            refused = f"{candidate}: {psnr:.1f} dB and at most {largest:.2g} of {extent:.2g} off torch in fp32"
        elif not psnr >= _SAME_DB:
            refused = f"{candidate}: {psnr:.1f} dB to torch in fp32, so it computes something else"
        return Verdict(str(candidate), seconds, psnr, largest, refused)

    def _seconds(self, network: Any) -> float:  # noqa: ANN401 - a module, or what takes its place
        """The shorter time of two, since a machine has other things to do as well."""
        found = []
        for _ in range(2):
            started = time.perf_counter()
            self._infer(self._inputs[0], network)  # it ends in host memory: a GPU has done its work then
            found.append(time.perf_counter() - started)
        return min(found)

    def _infer(self, part: Tensor, network: Any) -> Tensor:  # noqa: ANN401 - as above
        with torch.no_grad():
            output = self._bundle.inferer(part, network)
        return torch.as_tensor(output).detach().cpu().float().clone()


class _Recorder(nn.Module):
    """A network that keeps what it was first given, in each way in which it was used."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.examples: dict[str, Tensor] = {}
        self.differentiated = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the network's
        """Returns what the network returns."""
        return self._recorded(FORWARD, self.network, args, kwargs)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the network's
        try:
            return super().__getattr__(name)
        except AttributeError:
            method = getattr(super().__getattr__("network"), name)
        if not callable(method):
            return method
        return lambda *args, **kwargs: self._recorded(name, method, args, kwargs)

    def _recorded(self, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:  # noqa: ANN401 - as above
        self.differentiated = self.differentiated or torch.is_grad_enabled()
        if args and name not in self.examples:
            self.examples[name] = torch.as_tensor(args[0]).detach().as_subclass(Tensor).clone()
        return method(*args, **kwargs)


def _candidates(device: torch.device, backend: str, precision: str) -> list[Candidate]:
    if backend not in BACKENDS or precision not in PRECISIONS:
        raise BundleError(
            f"expected a back end of {', '.join(BACKENDS)} and a precision of {', '.join(PRECISIONS)}, "
            f"got {backend!r} and {precision!r}"
        )
    if backend == "auto":
        backend = os.environ.get("MEDGEN_BACKEND", "auto")
    here = [c for c in available(device) if precision in {"auto", c.precision} and backend in {"auto", c.backend}]
    if backend != "auto":
        plain = backend == "torch" and precision == "auto" and device.type == "cpu"
        return [c for c in here if c.precision == "fp32"] if plain else here
    # Compiling takes tens of seconds for each new size of window, and ONNX Runtime is behind OpenVINO on CPUs.
    quick = [c for c in here if c.backend not in {"compile", "onnx"}]
    converted = [c for c in quick if c.backend != "torch"]
    return [*converted, *(c for c in quick if c.backend == "torch" and (c.precision == "fp32" or not converted))]


def _network_of(candidate: Candidate, bundle: OpenBundle, original: Original) -> Any:  # noqa: ANN401 - as above
    """The network as a candidate has it; an inferer that sees to precision itself gets torch's network as it is."""
    if candidate.backend == "torch" and hasattr(bundle.inferer, "precision"):
        return bundle.network
    return build(candidate, original)


def _taken(bundle: OpenBundle, candidate: Candidate, network: Any, choice: Choice) -> OpenBundle:  # noqa: ANN401
    if hasattr(bundle.inferer, "precision"):
        bundle.inferer.precision = _inferers_precision(candidate)
    return replace(bundle, network=network, computed_by=choice, amp=False)


def _inferers_precision(candidate: Candidate) -> str:
    return candidate.precision if candidate.backend == "torch" else "fp32"


@contextmanager
def _precision_of(inferer: Any, precision: str) -> Iterator[None]:  # noqa: ANN401 - any callable
    if not hasattr(inferer, "precision"):
        yield
        return
    before, inferer.precision = inferer.precision, precision
    try:
        yield
    finally:
        inferer.precision = before


def _agreement(expected: Sequence[Tensor], got: Sequence[Tensor]) -> tuple[float, float, float]:
    """Returns the lowest PSNR [dB] and the largest difference over the parts, and the range of what was expected."""
    lowest, largest = _BEST_DB, 0.0
    extent = max(float(want.max() - want.min()) for want in expected) or 1.0
    for want, have in zip(expected, got, strict=True):
        if want.shape != have.shape or not bool(torch.isfinite(have).all()):
            return float("-inf"), float("inf"), extent
        error = (have - want).double()
        square = float(error.square().mean()) / extent**2
        lowest = min(lowest, -10 * math.log10(square) if square else _BEST_DB)
        largest = max(largest, float(error.abs().max()))
    return lowest, largest, extent


def _in_words(verdict: Verdict) -> str:
    if verdict.refused:
        return f"not {verdict.refused}"
    return f"{verdict.candidate} {verdict.seconds:.2f} s, {verdict.psnr_db:.0f} dB"


def _not_here(device: torch.device, backend: str, precision: str) -> str:
    here = ", ".join(map(str, available(device)))
    return f"expected a back end that this machine has on {device}, got {backend} with {precision}; it has {here}"


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
