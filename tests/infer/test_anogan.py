"""Normal patches found by an encoder or a search, alike in any batch, and the map of what they do not explain."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from medgen.errors import BundleError
from medgen.infer.anogan import (
    FINDERS,
    AnoGanScorer,
    EncoderFinder,
    Inverse,
    LatentSearch,
    find_finder,
    gaussian,
)
from medgen.nets.anogan import AnoGan
from medgen.nets.dcgan import ImageJudge, LatentEncoder, LatentGenerator

LATENT, SIDE = 16, 16


class Orthogonal(nn.Module):
    """A generator that its encoder inverts: latents are the first coordinates of patches in an orthogonal basis."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.basis = nn.Parameter(torch.linalg.qr(torch.randn(SIDE * SIDE, LATENT))[0])

    def encode(self, image: Tensor) -> Tensor:
        return image.flatten(1) @ self.basis

    def decode(self, latent: Tensor) -> Tensor:
        return (latent @ self.basis.T).reshape(-1, 1, SIDE, SIDE)

    def features(self, image: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(image, 4)


class Same(nn.Module):
    """A network of which patches are their own latents."""

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, latent: Tensor) -> Tensor:
        return latent

    def features(self, image: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(image, 8)


class Level(Same):
    """Takes every patch for an even one of grey 0, whatever it shows."""

    def decode(self, latent: Tensor) -> Tensor:
        return torch.zeros_like(latent)


def anogan() -> AnoGan:
    torch.manual_seed(0)
    return AnoGan(
        LatentGenerator(LATENT, (4, 4), (16, 8)),
        ImageJudge(channels=(8, 16), size=(SIDE, SIDE)),
        LatentEncoder(LATENT, (SIDE, SIDE), (8, 16)),
    ).eval()


def generated(network: AnoGan, count: int) -> Tensor:
    with torch.no_grad():
        return network.decode(torch.randn(count, LATENT, generator=torch.Generator().manual_seed(9)))


def losses(network: Inverse, patches: Tensor, found: Tensor, weight: float = 0.1) -> Tensor:
    """What a search lowers, of what it has found."""
    with torch.no_grad():
        residual = (patches - found).abs().flatten(1).sum(1)
        apart = (network.features(patches) - network.features(found)).abs().flatten(1).sum(1)
    return (1 - weight) * residual + weight * apart


def bands(columns: int = 100, bscans: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 1, columns, 64, bscans, generator=generator) - 0.5


def itself(network: Inverse, patches: Tensor) -> Tensor:
    return patches


def test_the_encoders_answer_is_the_networks_own_whatever_the_batch() -> None:
    network = anogan()
    patches = torch.rand(5, 1, SIDE, SIDE)
    with torch.no_grad():
        expected = network(patches)
    for batch in (1, 2, 64):
        found = EncoderFinder(batch)(network, patches)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert not found.requires_grad


def test_bf16_is_used_only_where_it_is_asked_for_and_its_answer_is_float32() -> None:
    network, patches = anogan(), torch.rand(2, 1, SIDE, SIDE)
    exact, auto, half = (EncoderFinder(precision=p)(network, patches) for p in ("fp32", "auto", "bf16"))
    assert torch.equal(exact, auto)
    assert half.dtype == torch.float32
    assert not torch.equal(exact, half)
    torch.testing.assert_close(exact, half, atol=0.05, rtol=0)


@pytest.mark.parametrize("patience", [0, 3])
@pytest.mark.parametrize("start", ["normal", "encoder"])
def test_a_search_does_not_depend_on_the_batch_nor_on_the_patches_after_it(start: Any, patience: int) -> None:
    network, patches = anogan(), generated(anogan(), 7)

    def search(some: Tensor, batch: int) -> Tensor:
        return LatentSearch(12, start=start, batch=batch, restarts=2, patience=patience)(network, some)

    together = search(patches, 64)
    for batch in (1, 3):
        torch.testing.assert_close(search(patches, batch), together, atol=1e-4, rtol=0)
    torch.testing.assert_close(search(patches[:3], 64), together[:3], atol=1e-4, rtol=0)
    others = torch.cat([patches[:3], torch.rand(4, 1, SIDE, SIDE)])
    torch.testing.assert_close(search(others, 64)[:3], together[:3], atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_answer_and_draws_from_nobody_elses_numbers() -> None:
    network, patches = anogan(), generated(anogan(), 3)
    state = torch.get_rng_state()
    first = LatentSearch(5)(network, patches)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(first, LatentSearch(5)(network, patches))
    assert not torch.equal(first, LatentSearch(5, seed=1)(network, patches))


def test_more_restarts_never_give_a_higher_loss() -> None:
    network, patches = anogan(), generated(anogan(), 6)
    found = [losses(network, patches, LatentSearch(8, restarts=n)(network, patches)) for n in (1, 2, 4)]
    for fewer, more in pairwise(found):
        assert torch.all(more <= fewer * (1 + 1e-5))
    assert torch.any(found[2] < 0.98 * found[0])


def test_more_steps_never_give_a_higher_loss() -> None:
    network, patches = anogan(), generated(anogan(), 4)
    found = [losses(network, patches, LatentSearch(n)(network, patches)) for n in (1, 5, 20)]
    for fewer, more in pairwise(found):
        assert torch.all(more <= fewer * (1 + 1e-5))


def test_a_search_from_a_perfect_encoder_stays_there() -> None:
    network = Orthogonal()
    patches = network.decode(torch.randn(4, LATENT)).detach()
    found = LatentSearch(10, start="encoder")(network, patches)
    torch.testing.assert_close(found, patches, atol=1e-5, rtol=0)
    astray = LatentSearch(10, start="normal")(network, patches)
    assert (astray - patches).abs().max() > 0.05


def test_a_search_from_the_encoder_is_never_worse_than_the_encoder() -> None:
    network, patches = anogan(), generated(anogan(), 5)
    start = losses(network, patches, EncoderFinder()(network, patches))
    found = losses(network, patches, LatentSearch(15, start="encoder", rate=0.05)(network, patches))
    assert torch.all(found <= start * (1 + 1e-5))
    assert float(found.sum()) < 0.9 * float(start.sum())


def test_the_latent_of_a_generated_patch_is_found() -> None:
    network, patches = anogan(), generated(anogan(), 4)
    before = losses(network, patches, LatentSearch(1, rate=1e-6)(network, patches))
    after = losses(network, patches, LatentSearch(150, rate=0.05)(network, patches))
    assert torch.all(after < 0.3 * before)


def test_patience_takes_fewer_steps_and_gives_nearly_the_same() -> None:
    network = Orthogonal()
    patches = network.decode(torch.randn(6, LATENT)).detach()
    whole, patient = LatentSearch(120, rate=0.1), LatentSearch(120, rate=0.1, patience=5, tolerance=1e-2)
    expected, found = whole(network, patches), patient(network, patches)
    assert whole.steps_taken == 120
    assert 5 < patient.steps_taken < 110
    first = losses(network, patches, LatentSearch(1, rate=1e-6)(network, patches))
    assert torch.all(losses(network, patches, found) < 0.2 * first)
    assert torch.all(losses(network, patches, expected) <= losses(network, patches, found) * (1 + 1e-5))
    impatient = LatentSearch(120, rate=0.1, patience=5, tolerance=0.5)
    impatient(network, patches)
    assert impatient.steps_taken < patient.steps_taken


def test_steps_of_all_restarts_are_counted() -> None:
    search = LatentSearch(4, restarts=3)
    search(anogan(), torch.rand(2, 1, SIDE, SIDE))
    assert search.steps_taken == 12


def test_a_search_leaves_the_network_alone_and_asks_for_no_gradient() -> None:
    network, patches = anogan(), torch.rand(2, 1, SIDE, SIDE)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        found = LatentSearch(3)(network, patches)
    assert not found.requires_grad
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("settings", [{"start": "mean"}, {"steps": 0}, {"restarts": 0}, {"batch": 0}])
def test_settings_that_search_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a start of normal or encoder and at least one step"):
        LatentSearch(**settings)


def test_finders_are_found_by_name_and_each_is_a_new_one() -> None:
    assert isinstance(find_finder("encoder"), EncoderFinder)
    published, warm = find_finder("search"), find_finder("warm-search")
    assert isinstance(published, LatentSearch)
    assert isinstance(warm, LatentSearch)
    assert (published.steps, published.weight, published.start) == (500, 0.1, "normal")
    assert warm.start == "encoder"
    assert warm.steps < published.steps
    assert all(find_finder(name) is not find_finder(name) for name in FINDERS)
    with pytest.raises(BundleError, match=r"encoder, search, warm-search, got 'vibes'"):
        find_finder("vibes")


def test_the_gaussian_is_that_of_scipy() -> None:
    planes = torch.rand(2, 1, 40, 30, generator=torch.Generator().manual_seed(0))
    for columns, rows in ((2.0, 0.0), (0.0, 1.5), (3.0, 1.0)):
        expected = [gaussian_filter(plane[0].numpy(), (columns, rows), mode="mirror", truncate=3.0) for plane in planes]
        np.testing.assert_allclose(gaussian(planes, columns, rows)[:, 0].numpy(), np.stack(expected), atol=1e-5)
    assert torch.equal(gaussian(planes, 0.0, 0.0), planes)
    assert gaussian(planes[:, :, :4], 24.0, 1.0).shape == (2, 1, 4, 30)  # wider than the plane itself


def test_what_is_wholly_explained_has_a_map_of_zero() -> None:
    heat = AnoGanScorer(itself, weight=0.0)(bands(bscans=2), Same())
    assert heat.shape == (1, 1, 100, 64, 2)
    assert heat.dtype == torch.float32
    assert float(heat.abs().max()) < 1e-6
    assert float(AnoGanScorer(itself, weight=0.7)(bands(), Same()).abs().max()) < 1e-6
    assert float(AnoGanScorer(EncoderFinder(), weight=0.0)(bands(), Level()).mean()) > 0.05


@pytest.mark.parametrize("columns", [64, 65, 100, 131])
@pytest.mark.parametrize("stride", [16, 64])
def test_patches_that_overlap_blend_to_what_they_were_cut_from(columns: int, stride: int) -> None:
    planes = bands(columns, 3)[0].movedim(-1, 0)
    normal, apart = AnoGanScorer(itself, stride=stride).restored(Same(), planes)
    torch.testing.assert_close(normal, planes)
    assert float(apart.abs().max()) < 1e-6


def test_features_differ_by_a_share_between_nothing_and_all() -> None:
    _, apart = AnoGanScorer(EncoderFinder()).restored(Level(), bands()[..., 0])
    assert float(apart.min()) > 0.99  # nothing of what is seen is in an even patch of 0
    assert float(apart.max()) <= 1 + 1e-5
    alone = AnoGanScorer(EncoderFinder(), weight=1.0)(bands(), Level())
    torch.testing.assert_close(alone[..., 0], apart)


def test_weight_mixes_residual_and_features() -> None:
    residual, features, mixed = (AnoGanScorer(EncoderFinder(), weight=w)(bands(), Level()) for w in (0.0, 1.0, 0.3))
    torch.testing.assert_close(mixed, 0.7 * residual + 0.3 * features)


def test_one_bscan_of_several_equals_it_alone() -> None:
    torch.manual_seed(0)
    network = AnoGan(
        LatentGenerator(LATENT, (4, 4), (8, 8, 8, 8)),
        ImageJudge(channels=(8, 8), size=(64, 64)),
        LatentEncoder(LATENT, (64, 64), (8, 8)),
    ).eval()
    scorer = AnoGanScorer(EncoderFinder(5))
    volume = bands(90, 3)
    together = scorer(volume, network)
    for z in range(3):
        torch.testing.assert_close(together[..., z : z + 1], scorer(volume[..., z : z + 1], network), atol=1e-5, rtol=0)
    batch = torch.cat([volume, volume.flip(-1)])
    torch.testing.assert_close(scorer(batch, network)[1], together[0].flip(-1), atol=1e-5, rtol=0)


def test_what_changes_slowly_along_the_retina_is_taken_off_and_a_spot_stays() -> None:
    """A layer that grows brighter over 200 columns, and a spot of 6 columns of the same height."""
    x = torch.arange(256.0)[:, None]
    slow = 0.4 / (1 + torch.exp(-(x - 128) / 30)) * (torch.arange(64) > 20)
    spot = 0.4 * ((x - 60).abs() < 3) * ((torch.arange(64) - 40).abs() < 3)
    band = (slow + spot)[None, None, ..., None]
    plain, even = (AnoGanScorer(EncoderFinder(), weight=0.0, trend=t)(band, Level())[0, 0, ..., 0] for t in (0.0, 24.0))
    assert float(plain[200:, 40].mean()) > 0.3
    assert float(even[90:, 40].abs().max()) < 0.08
    assert float(even[60, 40]) > 0.25
    assert int(even.argmax()) // 64 in range(57, 63)


def test_a_step_has_an_end_and_is_seen_there() -> None:
    step = torch.zeros(1, 1, 256, 64, 1)
    step[:, :, 128:] = 0.4
    heat = AnoGanScorer(EncoderFinder(), weight=0.0)(step, Level())[0, 0, :, 40, 0]
    assert float(heat[[100, 156]].min()) > float(heat[[20, 235]].max())
    assert 0.15 < float(heat[120:136].max()) < 0.25
    assert float(heat[:40].max()) < 0.01


def test_smoothing_spreads_a_spot_and_keeps_its_sum() -> None:
    band = torch.zeros(1, 1, 100, 64, 1)
    band[0, 0, 50, 30] = 1.0
    sharp, smooth = (
        AnoGanScorer(EncoderFinder(), weight=0.0, trend=0.0, smoothing=s)(band, Level())[0, 0, ..., 0]
        for s in (0.0, 2.0)
    )
    torch.testing.assert_close(sharp, band[0, 0, ..., 0])
    assert float(smooth.sum()) == pytest.approx(1.0, abs=1e-4)
    assert float(smooth.max()) < 0.1


def test_a_meta_tensor_stays_one_with_its_place() -> None:
    affine = torch.diag(torch.tensor([0.023, -0.0087, 0.2, 1.0], dtype=torch.float64))
    heat = AnoGanScorer(itself)(MetaTensor(bands(), affine=affine), Same())
    assert isinstance(heat, MetaTensor)
    torch.testing.assert_close(heat.affine, affine)
    assert not isinstance(AnoGanScorer(itself)(bands(), Same()), MetaTensor)


def test_a_network_without_the_parts_is_refused() -> None:
    with pytest.raises(BundleError, match="encode, decode and features, got Identity"):
        AnoGanScorer(EncoderFinder())(bands(), nn.Identity())


@pytest.mark.parametrize("shape", [(1, 1, 63, 64, 1), (1, 1, 100, 60, 1), (1, 1, 100, 80, 1)])
def test_bands_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match="expected bands of 64 rows and 64 columns or more"):
        AnoGanScorer(itself)(torch.zeros(shape), Same())


@pytest.mark.parametrize("name", sorted(FINDERS))
def test_precision_reaches_the_finder(name: str) -> None:
    finder: Any = find_finder(name)
    scorer = AnoGanScorer(finder)
    assert scorer.precision == "auto"
    scorer.precision = "bf16"
    assert finder.precision == scorer.precision == "bf16"
