"""How abnormal each voxel is to a variational autoencoder that knows normal anatomy: scores, and their inferer.

A score is called with (coder, window) and returns one map on the window's grid, larger where less normal. A coder has
`encode` (mean and log variance of the code), `decode` (a volume of one channel, or two: what it expects, and the
logarithm of how far off it expects to be), as `medgen.nets.vae` has. Of a window `(B, C, X, Y, Z)` the first channel is
the image; others (a declared contrast) are only conditions. Nothing is drawn: the same window gives the same map.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.nn import functional

from medgen.errors import BundleError
from medgen.infer.windows import Precision, WindowInferer

Norm = Literal["signed", "standardised", "positive", "absolute", "squared", "likelihood"]
_SMALLEST_SCALE, _LARGEST_SCALE = -5.0, 3.0  # the logarithms between which a network's own error is believed


class Coder(Protocol):
    """What a score asks of a network."""

    def encode(self, image: Tensor, /) -> tuple[Tensor, Tensor]:
        """Returns mean and log variance of the code."""

    def decode(self, latent: Tensor, /) -> Tensor:
        """Returns the volume of a code."""


Score = Callable[[Coder, Tensor], Tensor]


class ResidualScore:
    """How far the image is from its reconstruction.

    Args:
        norm: `positive`: brighter than expected, nothing where darker; `absolute`; `squared`; `signed`: brighter is
            above 0, darker below, so that noise cancels when the map is smoothed; `standardised`: the signed one over
            the error that the network expects there (its second output); `likelihood`: the negative log likelihood of
            Laplace with that scale, but for a constant.

    Source: Baur et al., "Autoencoders for unsupervised anomaly segmentation in brain MR images", Med Image Anal 69,
    2021 (residuals, bright lesions alone where they are known to be bright).

    Raises:
        ValueError: another norm.
    """

    def __init__(self, norm: Norm = "signed") -> None:
        if norm not in get_args(Norm):
            raise ValueError(f"expected a norm of {', '.join(get_args(Norm))}, got {norm!r}")
        self.norm = norm

    def __call__(self, coder: Coder, window: Tensor) -> Tensor:
        """Returns the map `(B, 1, X, Y, Z)`."""
        return self.between(window, coder.decode(coder.encode(window)[0]))

    def between(self, window: Tensor, expected: Tensor) -> Tensor:
        """Returns the map of a window and what it was expected to be."""
        residual = (window[:, :1] - expected[:, :1]).float()
        if self.norm == "signed":
            return residual
        if self.norm == "positive":
            return residual.clamp_min(0)
        if self.norm == "squared":
            return residual.square()
        if self.norm == "absolute":
            return residual.abs()
        log_scale = _log_scale(expected)
        if self.norm == "standardised":
            return residual * (-log_scale).exp()
        return residual.abs() * (-log_scale).exp() + log_scale


class BrightnessScore:
    """The image itself, on contrasts on which fluid is dark: what is abnormal there is bright, as on FLAIR.

    Alone it is the simple answer that a model has to beat; beside a residual it tells what is bright and unexpected
    from what is merely unexpected. Of T2, whose second channel declares it, it is 0: fluid would be all that it finds.
    """

    def __call__(self, coder: Coder, window: Tensor) -> Tensor:
        """Returns the map `(B, 1, X, Y, Z)`."""
        image = window[:, :1].float()
        return image * (1 - window[:, 1:2].float()) if window.shape[1] > 1 else image


class StructureScore:
    """1 - SSIM of image and reconstruction around each voxel: structure that is not there, whatever its brightness.

    Args:
        size: side of the cube that is compared [voxels], odd.
        value_range: of the image's values.

    Source: Bergmann et al., "Improving unsupervised defect segmentation by applying structural similarity to
    autoencoders", VISAPP 2019; constants of Wang et al., IEEE Trans Image Process 13:600, 2004. A cube of equal weights
    stands in for the Gaussian.
    """

    def __init__(self, size: int = 7, value_range: float = 1.0) -> None:
        self.size, self.constants = size, ((0.01 * value_range) ** 2, (0.03 * value_range) ** 2)

    def __call__(self, coder: Coder, window: Tensor) -> Tensor:
        """Returns the map `(B, 1, X, Y, Z)`, 0 to 2."""
        image, expected = window[:, :1].float(), coder.decode(coder.encode(window)[0])[:, :1].float()
        a, b = self._mean(image), self._mean(expected)
        spread_a, spread_b = self._mean(image * image) - a * a, self._mean(expected * expected) - b * b
        shared = self._mean(image * expected) - a * b
        small, tiny = self.constants[1], self.constants[0]
        brightness = (2 * a * b + tiny) / (a * a + b * b + tiny)
        return 1 - brightness * (2 * shared + small) / (spread_a + spread_b + small)

    def _mean(self, image: Tensor) -> Tensor:
        pad = [self.size // 2] * 6
        return functional.avg_pool3d(functional.pad(image, pad, mode="replicate"), self.size, stride=1)


class DivergenceScore:
    """How much each place's code differs from the prior: KL of its vector, in nats, interpolated to the voxels.

    Of a dense code there is one number, the same in the whole window.

    Source: Zimmerer et al., "Context-encoding variational autoencoder for unsupervised anomaly detection", 2018, for
    the score of a sample; per place for spatial codes.
    """

    def __call__(self, coder: Coder, window: Tensor) -> Tensor:
        """Returns the map `(B, 1, X, Y, Z)`."""
        mean, log_variance = (part.float() for part in coder.encode(window))
        places = _divergence(mean, log_variance).sum(1, keepdim=True)
        size = window.shape[2:]
        if places.ndim == 2:
            return places[:, :, None, None, None].expand(-1, -1, *size)
        return functional.interpolate(places, size=size, mode="trilinear", align_corners=False)


class GradientScore:
    """The slope of the code's divergence (and of the reconstruction's error) with respect to each voxel.

    Args:
        of: `divergence`, or `bound`: divergence and reconstruction error, the evidence lower bound.
        times_residual: multiply with the absolute residual, as in ceVAE, whose slopes alone are scattered.

    Source: Zimmerer et al., 2018 (ceVAE), "Unsupervised anomaly localization using variational auto-encoders",
    MICCAI 2019.
    """

    def __init__(self, of: Literal["divergence", "bound"] = "divergence", times_residual: bool = False) -> None:
        if of not in {"divergence", "bound"}:
            raise ValueError(f"expected the slope of divergence or bound, got {of!r}")
        self.of, self.times_residual = of, times_residual

    def __call__(self, coder: Coder, window: Tensor) -> Tensor:
        """Returns the map `(B, 1, X, Y, Z)`."""
        with torch.enable_grad():
            image = window[:, :1].detach().clone().requires_grad_()
            whole = torch.cat([image, window[:, 1:]], dim=1)
            mean, log_variance = (part.float() for part in coder.encode(whole))
            lost = _divergence(mean, log_variance).sum()
            residual = None
            if self.of == "bound" or self.times_residual:
                residual = (image - coder.decode(mean)[:, :1]).float().abs()
            if self.of == "bound" and residual is not None:
                lost = lost + residual.sum()
            (slope,) = torch.autograd.grad(lost, image)
        steep = slope.detach().abs().float()
        return steep * residual.detach() if self.times_residual and residual is not None else steep


class RestorationScore:
    """How far the image is from the most probable normal image near it, found by gradient steps in the latent.

    Starts at the code of the image and lowers `|image - decoded| + prior * |code|^2 / 2`: an error that counts in
    proportion only, so that what is locally abnormal pulls little, and a prior that pulls the code to what is usual.

    Args:
        steps: of gradient descent (Adam).
        rate: of a step.
        prior: weight of the code's log prior.
        norm: of the residual, see `ResidualScore`.

    Source: MAP restoration of You et al., "Unsupervised lesion detection via image restoration with a normative prior",
    MIDL 2019, and Baur et al., 2021; they move the image, this moves its code, so that what is found is an image that
    the decoder can make.
    """

    def __init__(self, steps: int = 20, rate: float = 0.05, prior: float = 0.1, norm: Norm = "signed") -> None:
        self.steps, self.rate, self.prior, self.residual = steps, rate, prior, ResidualScore(norm)

    def __call__(self, coder: Coder, window: Tensor) -> Tensor:
        """Returns the map `(B, 1, X, Y, Z)`."""
        image = window[:, :1].float()
        with torch.enable_grad():
            latent = coder.encode(window)[0].detach().float().requires_grad_()
            optimizer = torch.optim.Adam([latent], lr=self.rate)
            share = self.prior * image.numel() / latent.numel()  # a mean over voxels against a mean over the code
            for _ in range(self.steps):
                error = (image - coder.decode(latent)[:, :1].float()).abs().sum()
                (latent.grad,) = torch.autograd.grad(error + 0.5 * share * latent.square().sum(), latent)
                optimizer.step()
        return self.residual.between(window, coder.decode(latent.detach()))


class CombinedScore:
    """A weighted sum of scores.

    Args:
        parts: (weight, score) of each.
    """

    def __init__(self, parts: Sequence[tuple[float, Score]]) -> None:
        self.parts = tuple((float(weight), score) for weight, score in parts)

    def __call__(self, coder: Coder, window: Tensor) -> Tensor:
        """Returns the map `(B, 1, X, Y, Z)`."""
        maps = [weight * score(coder, window) for weight, score in self.parts]
        return torch.stack(maps).sum(0)


SCORES: Mapping[str, Callable[[], Score]] = {
    **{f"residual-{norm}": partial(ResidualScore, norm) for norm in get_args(Norm)},
    "structure": StructureScore,
    "divergence": DivergenceScore,
    "brightness": BrightnessScore,
    # Residual and its share of the expected error, and brightness: the best of those tried on patients left out.
    "combined": lambda: CombinedScore(
        [(1.0, ResidualScore("signed")), (0.05, ResidualScore("standardised")), (1.0, BrightnessScore())]
    ),
    "residual-divergence": lambda: CombinedScore([(1.0, ResidualScore("signed")), (0.01, DivergenceScore())]),
    "gradient": GradientScore,
    "cevae": lambda: GradientScore(times_residual=True),
    "bound-gradient": lambda: GradientScore("bound"),
    "restoration": RestorationScore,
}


def find_score(name: str) -> Score:
    """Returns the score of this name, with the settings that were measured.

    Raises:
        BundleError: there is none.
    """
    if name not in SCORES:
        raise BundleError(f"expected the score to be one of {', '.join(SCORES)}, got {name!r}")
    return SCORES[name]()


class LatentScorer(Inferer):  # type: ignore[misc]  # MONAI is untyped
    """Scores a volume window by window with an autoencoder, and smooths the map.

    Args:
        score: of one window.
        windows: how a volume is cut; a dense code needs windows of its one size.
        smoothing: standard deviation of the Gaussian over the finished map [voxels]; a lesion is larger than a voxel,
            noise is not.
        evidence: a second score, whose map comes as a second channel: what finds lesions best need not be what is
            comparable between scans.
        evidence_smoothing: of that map [voxels].
    """

    def __init__(
        self,
        score: Score,
        windows: WindowInferer,
        smoothing: float = 1.0,
        evidence: Score | None = None,
        evidence_smoothing: float = 1.0,
    ) -> None:
        super().__init__()
        self.score, self.windows, self.smoothing = score, windows, smoothing
        self.evidence, self.evidence_smoothing = evidence, evidence_smoothing

    @property
    def flags(self) -> tuple[str, ...]:
        """Those of the windows' last call."""
        return self.windows.flags

    @property
    def precision(self) -> Precision:
        """Of the network's arithmetic."""
        return self.windows.precision

    @precision.setter
    def precision(self, precision: Precision) -> None:
        self.windows.precision = precision

    def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> Tensor:
        """Returns the map `(B, 1, X, Y, Z)`, float32, of `inputs` `(B, C, X, Y, Z)`; a `MetaTensor` stays one.

        With `evidence` it is `(B, 2, X, Y, Z)`.

        Raises:
            BundleError: the network has no code.
            IntensityError, DeviceError: see `WindowInferer`.
        """
        if not (hasattr(network, "encode") and hasattr(network, "decode")):
            raise BundleError(f"expected a network with encode and decode, got {type(network).__name__}")
        scores = [self.score, *([self.evidence] if self.evidence else [])]
        conditions = [float(channel.amax()) for channel in inputs[:, 1:].unbind(1)]
        heat = self.windows(inputs, _Scored(network, scores, conditions))
        plain = heat.as_tensor() if isinstance(heat, MetaTensor) else heat
        sigmas = (self.smoothing, self.evidence_smoothing)
        smooth = torch.cat([smoothed(one, sigma) for one, sigma in zip(plain.split(1, dim=1), sigmas, strict=False)], 1)
        return MetaTensor(smooth, meta=inputs.meta) if isinstance(inputs, MetaTensor) else smooth


def smoothed(volume: Tensor, sigma: float) -> Tensor:
    """Returns a volume `(B, C, X, Y, Z)` after a Gaussian of `sigma` voxels, cut off at three of them; 0 outside.

    Example:
        >>> round(float(smoothed(torch.ones(1, 1, 9, 9, 9), 1.0)[0, 0, 4, 4, 4]), 4)
        1.0
    """
    reach = int(3 * sigma + 0.5)
    if reach == 0:
        return volume
    places = torch.arange(-reach, reach + 1, dtype=volume.dtype, device=volume.device)
    weights = torch.exp(-0.5 * (places / sigma).square())
    weights = weights / weights.sum()
    flat = volume.reshape(-1, 1, *volume.shape[2:])
    for axis in range(3):
        shape, pad = [1, 1, 1], [0, 0, 0]
        shape[axis], pad[axis] = len(weights), reach
        flat = functional.conv3d(flat, weights.reshape(1, 1, *shape), padding=pad)
    return flat.reshape(volume.shape)


class _Scored(nn.Module):
    """Scores as a network of as many channels, so that a `WindowInferer` can run them."""

    def __init__(self, network: nn.Module, scores: Sequence[Score], conditions: Sequence[float]) -> None:
        super().__init__()
        self.network, self.scores, self.conditions = network, tuple(scores), tuple(conditions)

    def forward(self, window: Tensor) -> Tensor:
        coder = _Once(self.network)
        # What is declared of a scan holds for what was padded, too.
        declared = [torch.full_like(window[:, :1], value) for value in self.conditions]
        whole = torch.cat([window[:, :1], *declared], dim=1)
        return torch.cat([score(coder, whole) for score in self.scores], dim=1)


class _Once:
    """A coder that computes the code of a window, and what a code decodes to, once for all scores of that window."""

    def __init__(self, coder: Any) -> None:  # noqa: ANN401 - a network with a code
        self._coder = coder
        self._known: dict[int, tuple[Tensor, Any]] = {}  # by identity; the key is kept, so that it stays one

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self._once(self._coder.encode, image)  # type: ignore[no-any-return]

    def decode(self, latent: Tensor) -> Tensor:
        return self._once(self._coder.decode, latent)  # type: ignore[no-any-return]

    def _once(self, step: Callable[[Tensor], Any], given: Tensor) -> Any:  # noqa: ANN401 - as above
        if torch.is_grad_enabled():  # a graph belongs to the score that follows it
            return step(given)
        if id(given) not in self._known:
            self._known[id(given)] = (given, step(given))
        return self._known[id(given)][1]


def _divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each number of a code, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def _log_scale(expected: Tensor) -> Tensor:
    if expected.shape[1] < 2:
        raise BundleError("expected a network that also says how far off it may be (two channels), got one channel")
    return expected[:, 1:2].float().clamp(_SMALLEST_SCALE, _LARGEST_SCALE)
