"""Scores of a variational autoencoder, and the inferer that runs them over a volume."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from medgen.errors import BundleError
from medgen.infer.latent import (
    SCORES,
    CombinedScore,
    DivergenceScore,
    GradientScore,
    LatentScorer,
    ResidualScore,
    RestorationScore,
    StructureScore,
    find_score,
    smoothed,
)
from medgen.infer.windows import WindowInferer
from medgen.losses.divergence import gaussian_kl
from medgen.nets.vae import DenseVAE, SpatialVAE

SIZE = (16, 16, 16)


class Flat(nn.Module):
    """An autoencoder that can be worked out by hand: the code is the image's mean by blocks of two voxels."""

    def __init__(self, log_scale: float = 0.0, gain: float = 1.0) -> None:
        super().__init__()
        self.log_scale, self.gain = log_scale, gain

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.gain * torch.nn.functional.avg_pool3d(image[:, :1], 2)
        return mean, torch.zeros_like(mean)

    def decode(self, latent: Tensor) -> Tensor:
        volume = torch.nn.functional.interpolate(latent / self.gain, scale_factor=2.0, mode="nearest")
        return torch.cat([volume, torch.full_like(volume, self.log_scale)], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.decode(self.encode(image)[0])


def window() -> Tensor:
    """An image of 1 with one bright voxel, and its declared contrast."""
    image = torch.ones(1, 2, *SIZE)
    image[0, 0, 4, 4, 4] = 9.0
    return image


def vae() -> SpatialVAE:
    torch.manual_seed(0)
    network = SpatialVAE(channels=(8, 16), blocks=(1, 1), latent_channels=4).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return network


def test_residuals_by_hand() -> None:
    """The block of the bright voxel is expected at 2: it is 7 above, its seven neighbours 1 below."""
    coder = Flat(log_scale=float(np.log(0.5)))
    value = {norm: ResidualScore(norm)(coder, window()) for norm in ("signed", "positive", "absolute", "squared")}
    assert [float(value[norm][0, 0, 4, 4, 4]) for norm in value] == [7.0, 7.0, 7.0, 49.0]
    assert [float(value[norm][0, 0, 4, 4, 5]) for norm in value] == [-1.0, 0.0, 1.0, 1.0]
    assert float(ResidualScore("standardised")(coder, window())[0, 0, 4, 4, 5]) == pytest.approx(-2.0)
    expected = 1 / 0.5 + np.log(0.5)
    assert float(ResidualScore("likelihood")(coder, window())[0, 0, 4, 4, 5]) == pytest.approx(expected)


def test_a_likelihood_needs_a_network_that_says_how_far_off_it_is() -> None:
    class Sure(Flat):
        def decode(self, latent: Tensor) -> Tensor:
            return super().decode(latent)[:, :1]

    with pytest.raises(BundleError, match="two channels"):
        ResidualScore("likelihood")(Sure(), window())
    with pytest.raises(ValueError, match="expected a norm"):
        ResidualScore("cubed")  # type: ignore[arg-type]


def test_structure_is_nothing_where_image_and_reconstruction_agree() -> None:
    heat = StructureScore(5)(Flat(), window())
    assert heat.shape == (1, 1, *SIZE)
    assert float(heat[0, 0, 12, 12, 12]) == pytest.approx(0.0, abs=1e-6)
    assert float(heat[0, 0, 4, 4, 4]) > 0.5


def test_divergences_add_up_to_that_of_the_code() -> None:
    network, image = vae(), torch.rand(1, 2, *SIZE)
    with torch.no_grad():
        heat = DivergenceScore()(network, image)
        whole = float(gaussian_kl(*network.encode(image)))
    assert float(heat.mean()) * 4**3 == pytest.approx(whole, rel=0.1)  # places are interpolated


def test_a_dense_code_has_one_divergence() -> None:
    torch.manual_seed(0)
    network = DenseVAE(SIZE, channels=(8, 8), blocks=(1, 1), latent=6).eval()
    with torch.no_grad():
        heat = DivergenceScore()(network, torch.rand(2, 2, *SIZE))
    assert heat.shape == (2, 1, *SIZE)
    assert [len(one.unique()) for one in heat] == [1, 1]


def test_the_slope_of_the_divergence_by_hand() -> None:
    """KL = sum of mean^2 / 2, a voxel's share of its mean is 1/8: the slope is mean / 8."""
    heat = GradientScore()(Flat(), window())
    assert float(heat[0, 0, 4, 4, 5]) == pytest.approx(2 / 8)
    assert float(heat[0, 0, 12, 12, 12]) == pytest.approx(1 / 8)
    times = GradientScore(times_residual=True)(Flat(), window())
    assert float(times[0, 0, 4, 4, 4]) == pytest.approx(7 * 2 / 8)
    assert float(times[0, 0, 12, 12, 12]) == pytest.approx(0.0)


def test_the_slope_of_the_bound_has_the_residual_too() -> None:
    heat = GradientScore("bound")(Flat(gain=0.01), window())
    assert float(heat[0, 0, 4, 4, 4]) == pytest.approx(1 - 1 / 8 + 7 / 8, abs=1e-3)


def test_restoration_moves_the_code_towards_what_is_usual_and_away_from_the_lesion() -> None:
    """With a strong prior the restored image is dimmer than the reconstruction, and the residual larger."""
    weak, strong = (RestorationScore(steps=30, rate=0.1, prior=p)(Flat(), window()) for p in (0.0, 10.0))
    start = ResidualScore("signed")(Flat(), window())
    assert float(strong[0, 0, 12, 12, 12]) > float(weak[0, 0, 12, 12, 12]) + 0.1
    # Without it the absolute error pulls the block to its median, 1, whatever one voxel shows.
    assert float(weak[0, 0, 4, 4, 4]) > float(start[0, 0, 4, 4, 4]) + 0.5
    assert float(weak[0, 0, 4, 4, 5].abs()) < 0.2


def test_a_combination_is_the_weighted_sum() -> None:
    parts = [(2.0, ResidualScore("positive")), (0.5, DivergenceScore())]
    heat = CombinedScore(parts)(Flat(), window())
    torch.testing.assert_close(heat, sum(w * s(Flat(), window()) for w, s in parts))


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_is_a_finite_map_that_draws_nothing_and_leaves_the_network_alone(name: str) -> None:
    network, image = vae(), torch.rand(1, 2, *SIZE)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        first, second = (find_score(name)(network, image) for _ in range(2))
    assert first.shape == (1, 1, *SIZE)
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)
    assert first.std() > 0
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


def test_an_unknown_score_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BundleError, match=r"residual-signed.*got 'vibes'"):
        find_score("vibes")


@pytest.mark.parametrize("name", ["residual-signed", "cevae", "restoration"])
def test_the_inferer_covers_any_size_and_keeps_the_grid(name: str) -> None:
    affine = torch.diag(torch.tensor([-1.0, 1.0, 2.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.rand(1, 2, 21, 30, 18), affine=affine)
    inferer = LatentScorer(find_score(name), WindowInferer(16, roi_multiple=4), smoothing=0.0)
    heat = inferer(image, vae())
    assert heat.shape == (1, 1, 21, 30, 18)
    torch.testing.assert_close(heat.affine, affine)
    assert inferer.flags == ()


def test_smoothing_is_a_gaussian_over_the_finished_map() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(20, 22, 18)).astype(np.float32)
    for sigma in (0.7, 1.0, 1.5):
        made = smoothed(torch.from_numpy(volume)[None, None], sigma)[0, 0].numpy()
        np.testing.assert_allclose(made, gaussian_filter(volume, sigma, mode="constant", truncate=3.0), atol=2e-6)
    assert torch.equal(smoothed(torch.from_numpy(volume)[None, None], 0.0)[0, 0], torch.from_numpy(volume))


def test_precision_is_that_of_the_windows() -> None:
    inferer = LatentScorer(ResidualScore(), WindowInferer(16))
    inferer.precision = "bf16"
    assert inferer.windows.precision == inferer.precision == "bf16"


def test_a_network_without_a_code_is_refused() -> None:
    with pytest.raises(BundleError, match="encode and decode, got Identity"):
        LatentScorer(ResidualScore(), WindowInferer(16))(torch.zeros(1, 2, *SIZE), nn.Identity())


def test_evidence_comes_as_a_second_channel_and_nothing_is_computed_twice() -> None:
    class Counting(Flat):
        def __init__(self) -> None:
            super().__init__()
            self.calls = {"encode": 0, "decode": 0}

        def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
            self.calls["encode"] += 1
            return super().encode(image)

        def decode(self, latent: Tensor) -> Tensor:
            self.calls["decode"] += 1
            return super().decode(latent)

    network = Counting()
    windows = WindowInferer(16, roi_multiple=4)
    inferer = LatentScorer(find_score("combined"), windows, 0.0, ResidualScore("signed"), 0.0)
    heat = inferer(window(), network)
    assert network.calls == {"encode": 1, "decode": 1}
    torch.testing.assert_close(heat[:, 1:], ResidualScore("signed")(Flat(), window()))
    torch.testing.assert_close(heat[:, :1], find_score("combined")(Flat(), window()))


def test_what_is_declared_of_a_scan_holds_where_it_is_padded() -> None:
    seen = []

    class Listening(Flat):
        def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(image[:, 1].unique().tolist())
            return super().encode(image)

    image = torch.cat([torch.rand(1, 1, 13, 13, 13), torch.ones(1, 1, 13, 13, 13)], dim=1)
    LatentScorer(ResidualScore(), WindowInferer(16, roi_multiple=4))(image, Listening())
    assert seen == [[1.0]]
