"""How abnormal each pixel of a flattened B-scan is to a GAN of normal retina: the nearest normal patch, and the rest.

A finder is called with (network, patches) and returns the normal patches that the network takes them for. It either
searches the latent, as AnoGAN does, or asks an encoder, as f-AnoGAN does, or starts there and searches for a few steps.
A network has `encode`, `decode` and `features`, as `medgen.nets.anogan.AnoGan`.

Source: Schlegl et al., IPMI 2017 (AnoGAN) and Medical Image Analysis 54:30, 2019 (f-AnoGAN).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, Protocol

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from medgen.errors import BundleError
from medgen.infer.windows import Precision

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Inverse(Protocol):
    """What a finder asks of a network."""

    def encode(self, image: Tensor, /) -> Tensor:
        """Returns latents `(B, L)` of patches `(B, 1, X, Y)`."""

    def decode(self, latent: Tensor, /) -> Tensor:
        """Returns the patches of latents."""

    def features(self, image: Tensor, /) -> Tensor:
        """Returns what the judge knows patches by, `(B, F, x, y)`."""


Finder = Callable[[Inverse, Tensor], Tensor]


class EncoderFinder:
    """The encoder's answer: one pass.

    Args:
        batch: patches in one pass.
        precision: of the network; `"auto"` is fp32 on the CPU, bf16 on CUDA.
    """

    def __init__(self, batch: int = 64, precision: Precision = "auto") -> None:
        self.batch, self.precision = batch, precision

    @torch.no_grad()
    def __call__(self, network: Inverse, patches: Tensor) -> Tensor:
        """Returns normal patches `(B, 1, X, Y)`, float32."""
        with _autocast(self.precision, patches.device):
            found = [network.decode(network.encode(part)).float() for part in torch.split(patches, self.batch)]
        return torch.cat(found)


class LatentSearch:
    """Looks for the latent whose patch is most like the one shown, by gradient steps (Adam), many patches at once.

    What is lowered for each patch is `(1 - weight) * sum |patch - decoded| + weight * sum |difference of features|`,
    the paper's residual and discrimination loss, the latter by feature matching. Patches do not touch each other: in a
    batch of any size each takes the way that it would take alone, but for rounding.

    Args:
        steps: of descent, at most.
        rate: of a step.
        weight: lambda, of the features beside the residual.
        start: `"normal"`: at a draw from N(0, 1); `"encoder"`: at the encoder's answer.
        restarts: searches for each patch from different draws, of which the best is kept.
        patience: a patch is done when its loss has not fallen by `tolerance` (relative) for so many steps; 0 takes all
            steps.
        tolerance: see `patience`.
        batch: searches that run together.
        seed: of the draws; all patches begin at the same.
        precision: of the network.

    Attributes:
        steps_taken: of the last call: the mean over patches, all restarts together.

    Source: Schlegl et al., IPMI 2017, equations 3 to 5; 500 steps and lambda 0.1 are theirs.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the settings of a search, each with the paper's value or off
        self,
        steps: int = 500,
        rate: float = 0.1,
        weight: float = 0.1,
        start: Literal["normal", "encoder"] = "normal",
        restarts: int = 1,
        patience: int = 0,
        tolerance: float = 1e-3,
        batch: int = 64,
        seed: int = 0,
        precision: Precision = "auto",
    ) -> None:
        if start not in {"normal", "encoder"} or min(steps, restarts, batch) < 1:
            raise ValueError(
                f"expected a start of normal or encoder and at least one step, restart and patch, got {start}, "
                f"{steps}, {restarts}, {batch}"
            )
        self.steps, self.rate, self.weight, self.start = steps, rate, weight, start
        self.restarts, self.patience, self.tolerance = restarts, patience, tolerance
        self.batch, self.seed, self.precision = batch, seed, precision
        self.steps_taken = 0.0

    def __call__(self, network: Inverse, patches: Tensor) -> Tensor:
        """Returns normal patches `(B, 1, X, Y)`, float32."""
        shown = patches.repeat(self.restarts, 1, 1, 1)  # patches and restarts go together
        with _settled(network):
            starts = torch.cat([self._starts(network, patches, restart) for restart in range(self.restarts)])
            parts = [
                self._descend(network, shown[first : first + self.batch], starts[first : first + self.batch])
                for first in range(0, len(shown), self.batch)
            ]
        found, losses = torch.cat([part for part, _, _ in parts]), torch.cat([loss for _, loss, _ in parts])
        self.steps_taken = sum(steps for _, _, steps in parts) / max(len(patches), 1)
        best = losses.reshape(self.restarts, len(patches)).argmin(0)
        return found.reshape(self.restarts, *patches.shape)[best, torch.arange(len(patches), device=best.device)]

    @torch.no_grad()
    def _starts(self, network: Inverse, patches: Tensor, restart: int) -> Tensor:
        with _autocast(self.precision, patches.device):
            latents = torch.cat([network.encode(part).float() for part in torch.split(patches, self.batch)])
        if self.start == "encoder" and restart == 0:
            return latents
        # One draw for all patches, on the CPU: the same whatever else is searched, the batch and the device.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + restart)
        return torch.randn(latents.shape[1:], generator=generator).to(latents.device).expand_as(latents)

    def _descend(self, network: Inverse, patches: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, int]:
        """Returns the patches found, their losses, and how many steps were taken over all."""
        found, losses = torch.zeros_like(patches), torch.full((len(patches),), torch.inf, device=patches.device)
        at_work = torch.arange(len(patches), device=patches.device)
        latent = starts.clone()
        # Adam by hand: its state shrinks with the patches that are still at work.
        mean, square = torch.zeros_like(latent), torch.zeros_like(latent)
        idle = torch.zeros(len(patches), device=patches.device)
        wanted = self._features(network, patches)
        taken = 0
        for step in range(1, self.steps + 2):
            loss, decoded, gradient = self._slope(network, latent, patches[at_work], wanted[at_work])
            fell = loss < losses[at_work] * (1 - self.tolerance)
            idle = torch.where(fell, torch.zeros_like(idle), idle + 1)
            better = loss < losses[at_work]
            found[at_work[better]], losses[at_work[better]] = decoded[better], loss[better]
            if step > self.steps:
                break
            taken += len(at_work)
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient.square()
            move = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            latent = latent - self.rate * move
            if self.patience and (idle >= self.patience).any():
                keep = idle < self.patience
                if not keep.any():
                    break
                at_work, latent, mean, square, idle = (x[keep] for x in (at_work, latent, mean, square, idle))
        return found, losses, taken

    @torch.no_grad()
    def _features(self, network: Inverse, patches: Tensor) -> Tensor:
        with _autocast(self.precision, patches.device):
            return network.features(patches).float()

    def _slope(
        self, network: Inverse, latent: Tensor, patches: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns each patch's loss, what is decoded, and the gradient at its latent."""
        with torch.enable_grad():
            point = latent.detach().requires_grad_()
            with _autocast(self.precision, patches.device):
                decoded = network.decode(point)
                seen = network.features(decoded)
            loss = (1 - self.weight) * (patches - decoded.float()).abs().flatten(1).sum(1)
            loss = loss + self.weight * (wanted - seen.float()).abs().flatten(1).sum(1)
            (gradient,) = torch.autograd.grad(loss.sum(), point)
        return loss.detach(), decoded.detach().float(), gradient


FINDERS: Mapping[str, Callable[[], Finder]] = {
    "encoder": EncoderFinder,
    "search": LatentSearch,
    "warm-search": partial(LatentSearch, steps=25, start="encoder", patience=3, tolerance=2e-3),
}


def find_finder(name: str) -> Finder:
    """Returns the finder of this name, with the settings that were measured.

    Raises:
        BundleError: there is none.
    """
    if name not in FINDERS:
        raise BundleError(f"expected the score to be one of {', '.join(FINDERS)}, got {name!r}")
    return FINDERS[name]()


class AnoGanScorer(Inferer):  # type: ignore[misc]  # MONAI is untyped
    """Scores flattened B-scans patch by patch, and blends what was found to one map.

    The normal patches overlap and are blended (Hann weights) to a normal B-scan. The map is `(1 - weight) * |residual|
    + weight * difference of features`, smoothed. Of the residual what changes slowly along the retina is taken off
    first: how bright a layer is differs between people and scanners, a lesion has an end.

    Args:
        finder: of the normal patches.
        size: of a patch, (columns, rows); the bands have as many rows.
        stride: columns from patch to patch.
        weight: of the features' relative difference, 0 to 1.
        trend: standard deviation of what counts as slow [columns]; 0 takes nothing off.
        smoothing: standard deviation of the Gaussian over residuals [columns and rows].
    """

    def __init__(
        self,
        finder: Finder,
        size: Sequence[int] = (64, 64),
        stride: int = 16,
        weight: float = 0.1,
        trend: float = 16.0,
        smoothing: float = 1.0,
    ) -> None:
        super().__init__()
        self.finder, self.size, self.stride = finder, tuple(size), stride
        self.weight, self.trend, self.smoothing = weight, trend, smoothing

    @property
    def precision(self) -> Precision:
        """Of the network's arithmetic."""
        chosen: Precision = getattr(self.finder, "precision", "auto")
        return chosen

    @precision.setter
    def precision(self, precision: Precision) -> None:
        self.finder.precision = precision  # type: ignore[attr-defined]

    def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> Tensor:
        """Returns the map `(B, 1, X, rows, Z)` of bands `(B, 1, X, rows, Z)`, float32; a `MetaTensor` stays one.

        Raises:
            BundleError: the network is no AnoGAN, or the bands are smaller than a patch.
        """
        if not all(hasattr(network, part) for part in ("encode", "decode", "features")):
            raise BundleError(f"expected a network with encode, decode and features, got {type(network).__name__}")
        parameters = network.parameters() if isinstance(network, nn.Module) else ()
        device = next((p.device for p in parameters), inputs.device)
        plain = inputs.as_subclass(Tensor).float()
        planes = plain.movedim(-1, 1).flatten(0, 1)  # every B-scan of every volume, (B * Z, 1, X, rows)
        if planes.shape[2] < self.size[0] or planes.shape[3] != self.size[1]:
            raise BundleError(
                f"expected bands of {self.size[1]} rows and {self.size[0]} columns or more, got {inputs.shape}"
            )
        with _settled(network):
            heat = self._heat(network, planes.to(device)).to(inputs.device)
        back = heat.reshape(len(plain), plain.shape[-1], *heat.shape[1:]).movedim(1, -1)
        return MetaTensor(back, meta=inputs.meta) if isinstance(inputs, MetaTensor) else back

    def restored(self, network: Any, planes: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - see `Inverse`
        """Returns the normal B-scans `(N, 1, X, rows)` of such, and how much features differ there, 0 to 1."""
        starts = patch_starts(planes.shape[2], self.size[0], self.stride)
        patches = torch.cat([planes[:, :, start : start + self.size[0]] for start in starts])
        normal = self.finder(network, patches)
        with torch.no_grad():
            seen, wanted = (self._features(network, some) for some in (normal, patches))
        apart = (seen - wanted).abs().sum(1, keepdim=True)
        apart = apart / (seen.abs() + wanted.abs()).sum(1, keepdim=True).clamp_min(1e-6)
        apart = functional.interpolate(apart, size=self.size, mode="bilinear", align_corners=False)
        return _blended(normal, starts, planes), _blended(apart, starts, planes)

    def _heat(self, network: nn.Module, planes: Tensor) -> Tensor:
        normal, apart = self.restored(network, planes)
        residual = planes - normal
        residual = residual - gaussian(residual, self.trend, 0.0) if self.trend else residual
        residual = gaussian(residual, self.smoothing, self.smoothing).abs()
        return (1 - self.weight) * residual + self.weight * apart

    @staticmethod
    def _features(network: Inverse, patches: Tensor) -> Tensor:
        return torch.cat([network.features(part).float() for part in torch.split(patches, 64)])


def gaussian(planes: Tensor, columns: float, rows: float) -> Tensor:
    """Returns planes `(N, 1, X, Y)` after a Gaussian of these standard deviations, mirrored at the border.

    Example:
        >>> round(float(gaussian(torch.ones(1, 1, 8, 8), 3.0, 1.0).std()), 6)
        0.0
    """
    for axis, sigma in ((2, columns), (3, rows)):
        reach = min(int(3 * sigma + 0.5), planes.shape[axis] - 1)
        if reach == 0:
            continue
        places = torch.arange(-reach, reach + 1, dtype=planes.dtype, device=planes.device)
        weights = torch.exp(-0.5 * (places / sigma).square())
        shape = [1, 1, 1, 1]
        shape[axis] = len(weights)
        pad = [0, 0, reach, reach] if axis == 2 else [reach, reach, 0, 0]
        padded = functional.pad(planes, pad, mode="reflect")
        planes = functional.conv2d(padded, (weights / weights.sum()).reshape(shape))
    return planes


def patch_starts(columns: int, width: int, stride: int) -> list[int]:
    """Returns the first columns of patches that cover all: evenly spaced, `stride` apart at most.

    Example:
        >>> patch_starts(100, 64, 16)
        [0, 12, 24, 36]
    """
    steps = -(-(columns - width) // stride)
    return [round(n * (columns - width) / max(steps, 1)) for n in range(steps + 1)]


def _blended(patches: Tensor, starts: Sequence[int], planes: Tensor) -> Tensor:
    """Lays patches, those of each start together, over the planes that they were cut from."""
    width = patches.shape[2]
    hann = torch.hann_window(width + 2, periodic=False, device=planes.device)[1:-1, None]
    total, weights = torch.zeros_like(planes), torch.zeros(planes.shape[2], 1, device=planes.device)
    for start, part in zip(starts, torch.split(patches, len(planes)), strict=True):
        total[:, :, start : start + width] += part * hann
        weights[start : start + width] += hann
    return total / weights


@contextmanager
def _settled(network: object) -> Iterator[None]:
    """Computes the judge's spectral norms once, in the weights' own precision, and not at every step again."""
    with parametrize.cached():
        for module in network.modules() if isinstance(network, nn.Module) else ():
            if isinstance(named := getattr(module, "parametrizations", None), nn.ModuleDict):
                for name in named:
                    getattr(module, name)
        yield


def _autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    chosen = "bf16" if precision == "auto" and device.type == "cuda" else precision
    return torch.autocast(device.type, dtype=_HALF.get(chosen, torch.bfloat16), enabled=chosen in _HALF)
