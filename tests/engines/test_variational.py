"""Variational autoencoders of MONAI under our trainer."""

import pytest
import torch
from ignite.engine import Events
from monai.networks.nets import AutoencoderKL, VarAutoEncoder
from torch import Tensor

from medgen.engines.adversary import Adversary
from medgen.engines.player import MovingAverage, Player
from medgen.engines.variational import (
    VariationalTrainer,
    encode_dense,
    encode_spatial,
    reconstruct_dense,
    reconstruct_drawn,
    reconstruct_spatial,
)
from medgen.losses.adversarial import hinge_d_loss, hinge_g_loss
from medgen.losses.divergence import gaussian_kl
from medgen.losses.likelihood import ExpectedErrorLoss
from medgen.nets.patchgan import PatchDiscriminator
from medgen.nets.vae import SpatialVAE


def dense() -> VarAutoEncoder:
    torch.manual_seed(0)
    return VarAutoEncoder(2, (1, 8, 8), 1, 3, (4, 8), (2, 2), use_sigmoid=False, use_mean_at_inference=True)


def error(outputs: list[Tensor], target: Tensor, mask: Tensor) -> Tensor:
    return (mask * (outputs[-1] - target)).square().mean()


def stripes(count: int = 30) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    bright = torch.rand(count, 8, 1, 1, 1, generator=generator)
    pattern = torch.sin(torch.arange(8.0))[None, None, None, :].expand(8, 1, 8, 8)
    return [{"image": b * pattern} for b in bright]


def trainer(network: torch.nn.Module, epochs: int = 1, **options: object) -> VariationalTrainer:
    player = Player(network, torch.optim.Adam(network.parameters(), 3e-3))
    return VariationalTrainer("cpu", epochs, stripes(), player, error, gaussian_kl, None, {"seed": 1, **options})


def told(engine: VariationalTrainer) -> dict[str, float]:
    return engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output


def test_the_loss_is_the_reconstruction_and_the_weighted_divergence() -> None:
    engine = trainer(dense(), kl_weight=0.25)
    engine.run()
    out = told(engine)
    assert out["loss"] == pytest.approx(out["reconstruction_loss"] + 0.25 * out["kl"], rel=1e-5)
    assert out["kl"] > 0


def test_the_weight_of_the_divergence_rises_over_its_epochs() -> None:
    engine, weights = trainer(dense(), epochs=4, kl_weight=0.3, kl_warmup=2), []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: weights.append(e._kl_weight()))
    engine.run()
    assert weights == [pytest.approx(w) for w in (0.0, 0.15, 0.3, 0.3)]


def test_it_learns_and_its_average_follows() -> None:
    network = dense()
    average = MovingAverage(network, 0.9)
    engine = trainer(network, epochs=15, kl_weight=1e-4, average=average)
    losses: list[float] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(told(e)["reconstruction_loss"]))
    engine.run()
    assert losses[-1] < 0.2 * losses[0]
    image = stripes()[0]["image"]
    with torch.no_grad():
        torch.testing.assert_close(average.network(image)[0], network.eval()(image)[0], atol=0.2, rtol=0.2)


def test_a_dense_code_is_encoded_as_its_mean() -> None:
    network, image = dense().eval(), stripes()[0]["image"]
    with torch.no_grad():
        reconstruction, mean, _ = reconstruct_dense(network, image)
        torch.testing.assert_close(reconstruction, network.decode_forward(mean, use_sigmoid=False))


def spatial() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        2, 1, 1, (1, 1), (8, 8), attention_levels=(False, False), latent_channels=2, norm_num_groups=4,
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    ).eval()  # fmt: skip


@pytest.mark.parametrize(("make", "encode"), [(dense, encode_dense), (spatial, encode_spatial)])
def test_encoding_draws_nothing(make: object, encode: object) -> None:
    network, image = make(), stripes()[0]["image"]  # type: ignore[operator]
    for mode in (True, False):
        network.train(mode)
        with torch.no_grad():
            first, second = (encode(network, image) for _ in range(2))  # type: ignore[operator]
        assert torch.equal(first, second)
        assert first.std() > 0


def test_an_adversary_of_reconstructions_plays_and_is_felt() -> None:
    """A VAE-GAN: a discriminator of volumes, here of one plane each."""
    network = dense()
    torch.manual_seed(1)
    judge = PatchDiscriminator(in_channels=1, channels=[4], planar=True)
    before = [p.detach().clone() for p in judge.parameters()]

    class Plane(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.judge = judge

        def forward(self, image: Tensor) -> Tensor:
            return self.judge(image[..., None])[0]

    rival = Player(Plane(), torch.optim.Adam(judge.parameters(), 1e-3))
    adversary = Adversary(rival, hinge_d_loss, hinge_g_loss, weight=0.5, first_epoch=2)
    player = Player(network, torch.optim.Adam(network.parameters(), 3e-3))
    engine = VariationalTrainer("cpu", 2, stripes(4), player, error, gaussian_kl, adversary, {"seed": 1})
    losses: dict[int, dict[str, float]] = {}
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: losses.update({e.state.epoch: dict(told(e))}))
    engine.run()
    assert losses[1]["d_loss"] == losses[1]["g_loss"] == 0
    assert losses[2]["d_loss"] > 0
    assert losses[2]["g_pull"] > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, judge.parameters(), strict=True))


def test_a_spatial_code_gives_its_log_variance() -> None:
    network, image = spatial(), stripes()[0]["image"]
    with torch.no_grad():
        _, mean, log_variance = reconstruct_spatial(network, image)
        expected_mean, deviation = network.encode(image)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close((0.5 * log_variance).exp(), deviation)


def test_only_the_mask_counts_and_a_target_is_what_is_reconstructed() -> None:
    engine = trainer(dense(), kl_weight=0.0)
    seen: list[tuple[float, float]] = []

    def spy(outputs: list[Tensor], target: Tensor, mask: Tensor) -> Tensor:
        seen.append((target.unique().item(), mask.mean().item()))
        return error(outputs, target, mask)

    engine.reconstruction = spy
    for batch in engine.data_loader:
        batch["target"], batch["mask"] = torch.full((8, 1, 8, 8), 7.0), torch.zeros(8, 1, 8, 8)
    engine.run()
    assert set(seen) == {(7.0, 0.0)}


def test_what_a_decoder_says_besides_the_image_is_the_losss_business() -> None:
    network = SpatialVAE(in_channels=1, channels=(8,), blocks=(1,), latent_channels=2)
    player = Player(network, torch.optim.Adam(network.parameters(), 1e-3))
    seen: list[torch.Size] = []

    def spy(outputs: list[Tensor], target: Tensor, mask: Tensor) -> Tensor:
        seen.append(outputs[0].shape)
        return ExpectedErrorLoss()(outputs, target, mask)

    volumes = [{"image": torch.rand(1, 1, 8, 8, 8)} for _ in range(2)]
    options = {"seed": 1, "read": reconstruct_drawn}
    engine = VariationalTrainer("cpu", 1, volumes, player, spy, gaussian_kl, None, options)
    engine.run()
    out = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
    assert seen == [torch.Size([1, 2, 8, 8, 8])] * 2
    assert out["pred"].shape[0] == 1
