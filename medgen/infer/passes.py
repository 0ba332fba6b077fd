"""Forward passes over groups of windows: a torch network's, or a converted one's that streams, and what comes out."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from medgen.errors import BundleError
from medgen.infer.cut import Window, starts_of
from medgen.infer.mosaic import Group, Taking
from medgen.layout import channels_last

Names = tuple[object, ...] | None  # of a dict of outputs; None for a tensor or a sequence of tensors


class Streaming(Protocol):
    """A network that takes windows as it has room for them, such as one converted for another runtime.

    Attributes:
        batch: windows that it wants in one forward pass.
    """

    batch: int

    def stream(self, groups: Iterable[Group]) -> Iterator[tuple[Sequence[Window], Any]]:
        """Yields each group's windows with the network's output for them, in the order given.

        It takes the next group, voxels `(windows, C, *roi)` in float32, whenever it has room for one, so that several
        are on their way at once. An output may lie in memory that is used again once the next one is asked for.
        """
        ...


def is_streaming(network: object) -> TypeGuard[Streaming]:
    """Says whether a network takes a stream of windows, rather than being called with each group."""
    return callable(getattr(network, "stream", None)) and hasattr(network, "batch")


class Forward:
    """A network's forward passes, in the precision and memory layout that suit the device."""

    def __init__(
        self,
        network: Callable[..., Any] | Streaming,
        device: torch.device,
        dtype: torch.dtype,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> None:
        if is_streaming(network) and (args or kwargs):
            raise BundleError(
                f"expected nothing but windows for {type(network).__name__}, which streams them, got "
                f"{len(args)} arguments and {sorted(kwargs or ())}; take a network that is called with each window"
            )
        self.network = network
        self.device = device
        self.dtype = dtype
        self._args = args
        self._kwargs = dict(kwargs or {})
        self._channels_last = device.type == "cuda" and dtype != torch.float32

    @property
    def batch(self) -> int | None:
        """Windows in one pass that the network itself asks for."""
        return int(self.network.batch) if is_streaming(self.network) else None

    def outputs(self, groups: Iterator[Group]) -> Generator[tuple[Sequence[Window], Any], None, None]:
        """Yields the windows of each group with the network's output, which only a stream may have asked for early.

        Raises:
            BundleError: a stream's outputs do not come in the order of its windows.
        """
        if is_streaming(self.network):
            with _one_thread():
                yield from _in_order(self.network, groups)
            return
        for windows, voxels in groups:
            yield windows, self(voxels)

    def __call__(self, windows: Tensor) -> Any:  # noqa: ANN401 - whatever the network puts out
        """Returns the network's output for windows `(windows, C, *roi)`."""
        if self._channels_last:
            layout = torch.channels_last_3d if windows.ndim == 5 else torch.channels_last
            windows = windows.contiguous(memory_format=layout)
            if isinstance(self.network, nn.Module):
                channels_last(self.network)  # the values stay; cuDNN need not turn the weights at every call
        lowered = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype if lowered else None, enabled=lowered):
            return self.network(windows, *self._args, **self._kwargs)  # type: ignore[operator]  # only streams are not


@contextmanager
def _one_thread() -> Iterator[None]:
    """Has torch cut and blend in this thread alone: its idle helpers would spin on the cores that a stream computes on.

    On two cores, a fifth of the time of a volume.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_order(network: Streaming, groups: Iterator[Group]) -> Iterator[tuple[Sequence[Window], Any]]:
    waiting: list[Sequence[Window]] = []

    def noted() -> Iterator[Group]:
        for windows, voxels in groups:
            waiting.append(windows)
            yield windows, voxels

    source = network.stream(noted())
    try:
        for windows, output in source:
            if not waiting or list(windows) != list(waiting[0]):
                raise BundleError(
                    f"expected the outputs of {type(network).__name__} in the order of its windows, got one for "
                    f"windows that start at {starts_of(windows)}; let it yield each group once, in turn"
                )
            del waiting[0]
            yield windows, output
    finally:
        if hasattr(source, "close"):  # before a second try: what is on its way still holds memory
            source.close()
    if waiting or next(groups, None) is not None:
        raise BundleError(
            f"expected {type(network).__name__} to yield an output for every group of windows, got none for some; "
            "let it take groups until there are no more, and finish those on their way"
        )


def tensors_of(output: object, windows: int, axes: int, taking: Taking) -> tuple[Names, list[Tensor]]:
    """Returns the tensors in a network's output, float32, as `(windows, C, *spatial)`, and the names of a dict's.

    Args:
        output: a tensor, or a sequence or dict of tensors.
        windows: in the group.
        axes: spatial axes of the volume.
        taking: where windows are single slices, their axis comes back.

    Raises:
        BundleError: it is something else, or does not have an item for each window.
    """
    names, parts = None, [output]
    if isinstance(output, Mapping):
        names, parts = tuple(output), list(output.values())
    elif isinstance(output, list | tuple):
        parts = list(output)
    ndim = 2 + axes - (taking.slice_axis is not None)
    tensors = []
    for part in parts:
        if not isinstance(part, Tensor) or part.ndim != ndim or len(part) != windows:
            got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise BundleError(
                f"expected outputs ({windows}, channels, {ndim - 2} spatial axes) for {windows} windows, got {got}; "
                "take monai.inferers.SimpleInferer for a network that does not put out an image"
            )
        plain = (part.as_tensor() if isinstance(part, MetaTensor) else part).float()
        tensors.append(plain if taking.slice_axis is None else plain.unsqueeze(2 + taking.slice_axis))
    if not tensors:
        raise BundleError(f"expected at least one output of the network, got an empty {type(output).__name__}")
    return names, tensors


def packed(names: Names, tensors: Sequence[Any]) -> Any:  # noqa: ANN401 - as many as the network has outputs
    """Returns a dict for names, else a tuple, or of one tensor the tensor itself: as MONAI does."""
    if names is not None:
        return dict(zip(names, tensors, strict=True))
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def all_finite(tensor: Tensor) -> Tensor:
    """Returns whether no number is NaN or infinite, as a tensor on the same device.

    On the CPU a sum is taken first, at a twentieth of the time: it is finite only where all are.
    """
    if not tensor.is_cuda:
        finite = torch.isfinite(tensor.sum())
        if bool(finite):
            return finite
    return torch.isfinite(tensor).all()
