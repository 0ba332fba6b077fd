"""Variational autoencoders of MONAI under our trainer."""

import pytest
import torch
from ignite.engine import Events
from monai.networks.nets import AutoencoderKL, VarAutoEncoder
from torch import Tensor

from medgen.engines.player import MovingAverage, Player
from medgen.engines.variational import VariationalTrainer, reconstruct_dense, reconstruct_spatial
from medgen.losses.divergence import gaussian_kl


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


def test_a_spatial_code_gives_its_log_variance() -> None:
    torch.manual_seed(0)
    network = AutoencoderKL(
        2, 1, 1, (1, 1), (8, 8), attention_levels=(False, False), latent_channels=2, norm_num_groups=4,
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    ).eval()  # fmt: skip
    image = stripes()[0]["image"]
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
