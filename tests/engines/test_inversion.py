"""First the GAN learns and the encoder stands still, then the encoder alone learns to invert the GAN's average."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.handlers import CheckpointLoader
from torch import Tensor, nn

from medgen.engines.adversary import Adversary
from medgen.engines.inversion import InversionTrainer, last_features
from medgen.engines.latent import NormalLatent
from medgen.engines.player import MovingAverage, Player
from medgen.losses.adversarial import minimax_d_loss, non_saturating_g_loss
from medgen.nets.dcgan import ImageJudge, LatentEncoder, LatentGenerator
from medgen.run.checkpoint import CheckpointKeeper

PARTS = ("generator", "average", "judge", "encoder", "encoder average")


def stripes(batches: int = 4, count: int = 8) -> list[dict[str, Tensor]]:
    """Images `(B, 1, 8, 8)` of one wave each: as many ways to differ as a latent has."""
    generator = torch.Generator().manual_seed(2)
    result = []
    for _ in range(batches):
        phase, pitch = torch.rand(2, count, 1, 1, 1, generator=generator)
        image = 0.8 * torch.sin(6 * phase + (0.4 + 0.3 * pitch) * torch.arange(8.0)[:, None])
        result.append({"image": image.expand(-1, -1, 8, 8).contiguous()})
    return result


def inversion(epochs: int = 4, share: float = 0.5, **options: Any) -> InversionTrainer:
    torch.manual_seed(4)
    makes = LatentGenerator(4, (4, 4), (8,))
    judge, finds = ImageJudge(channels=(8, 8), size=(8, 8)), LatentEncoder(4, (8, 8), (8,))
    players = [Player(net, torch.optim.Adam(net.parameters(), 5e-3)) for net in (makes, judge, finds)]
    adversary = Adversary(players[1], minimax_d_loss, non_saturating_g_loss, weight=1.0)
    chosen = {
        "average": MovingAverage(makes, 0.9),
        "encoder_average": MovingAverage(finds, 0.9),
        "gan_share": share,
        "seed": 5,
        **options,
    }
    latent = NormalLatent([4])
    return InversionTrainer("cpu", epochs, stripes(), players[0], adversary, latent, players[2], chosen)


def weights(trainer: InversionTrainer) -> dict[str, Tensor]:
    encoder_average = trainer.averages[-1][1]
    assert encoder_average is not None
    networks = (
        trainer.generator.network,
        trainer.inverted,
        trainer.adversary.player.network,
        trainer.encoder.network,
        encoder_average.network,
    )
    return {name: _state(network) for name, network in zip(PARTS, networks, strict=True)}


def _state(network: nn.Module) -> Tensor:
    """Weights and buffers: a spectral norm's vectors stand still, too, where a judge does."""
    return torch.cat([value.detach().flatten().clone() for value in network.state_dict().values()])


def test_each_epoch_belongs_to_the_gan_or_to_the_encoder() -> None:
    trainer = inversion()
    ends = [weights(trainer)]
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: ends.append(weights(trainer)))
    trainer.run()
    assert trainer.encoder_epoch == 3
    for epoch in (1, 2, 3, 4):
        moved = {name for name in PARTS if not torch.equal(ends[epoch - 1][name], ends[epoch][name])}
        assert moved == (set(PARTS[:3]) if epoch < 3 else set(PARTS[3:]))


@pytest.mark.parametrize(("epochs", "share", "first"), [(10, 0.6, 7), (5, 0.5, 3), (1, 0.6, 1), (4, 0.0, 1)])
def test_the_share_of_the_gan_is_rounded_down_and_the_encoder_always_has_an_epoch(
    epochs: int, share: float, first: int
) -> None:
    assert inversion(epochs, share).encoder_epoch == first <= epochs


def test_the_output_tells_of_both_and_the_encoders_losses_are_zero_before_its_turn() -> None:
    trainer = inversion(2)
    told: list[dict[str, Any]] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: told.append(dict(engine.state.output)))
    trainer.run()
    assert len(told) == 8
    for output in told[:4]:
        assert output["residual_loss"] == output["feature_loss"] == 0
        assert output["d_loss"] > 0
    for output in told[4:]:
        assert output["residual_loss"] > 0
        assert output["feature_loss"] > 0
        assert output["loss"] == pytest.approx(output["residual_loss"] + output["feature_loss"])
        assert output["pred"].shape == output["real"].shape == (8, 1, 8, 8)
        assert not output["pred"].requires_grad


def test_the_residual_falls_while_the_encoder_learns() -> None:
    """Of images that the generator can make."""
    trainer = inversion(15, share=0.0, feature_weight=0.1)
    with torch.no_grad():
        batches = [{"image": trainer.inverted(torch.randn(8, 4))} for _ in range(4)]
    trainer.state.dataloader = trainer.data_loader = batches
    residuals: list[float] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: residuals.append(engine.state.output["residual_loss"])
    )
    trainer.run()
    assert len(residuals) == 15 * 4
    assert sum(residuals[-4:]) < 0.5 * sum(residuals[:4])


def test_features_count_as_much_as_their_weight_says_and_are_read_as_told() -> None:
    asked: list[nn.Module] = []

    def first_features(judge: nn.Module, image: Tensor) -> Tensor:
        asked.append(judge)
        features: Tensor = judge(image)[1][0]
        return features

    trainer = inversion(1, feature_weight=3.0, features=first_features)
    trainer.run()
    output = trainer.state.output
    assert output["loss"] == pytest.approx(output["residual_loss"] + 3 * output["feature_loss"])
    assert asked
    assert all(judge is trainer.adversary.player.network for judge in asked)
    judge, image = ImageJudge(channels=(4, 6), size=(8, 8)).eval(), torch.rand(1, 1, 8, 8)
    assert torch.equal(last_features(judge, image), judge(image)[1][-1])


def test_without_weight_the_encoder_does_not_hear_of_features() -> None:
    trained = []
    for seed in (0, 1):
        trainer = inversion(1, feature_weight=0.0)
        torch.manual_seed(seed)
        for weight in trainer.adversary.player.network.parameters():
            torch.nn.init.normal_(weight)
        trainer.run()
        trained.append(weights(trainer)["encoder"])
    assert torch.equal(*trained)


def _states(trainer: InversionTrainer) -> dict[str, Any]:
    (_, average), (_, encoder_average) = trainer.averages
    players = {"generator": trainer.generator, "rival": trainer.adversary.player, "encoder": trainer.encoder}
    return {**players, "average": average, "encoder_average": encoder_average, "trainer": trainer}


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_resumed_before_at_and_after_the_change_it_equals_one_that_never_stopped(epoch: int, tmp_path: Path) -> None:
    whole = inversion()
    CheckpointKeeper(tmp_path, _states(whole), every=1, keep=9).attach(whole)
    whole.run()
    resumed = inversion()
    for part in (resumed.generator, resumed.adversary.player, resumed.encoder):
        for weight in part.network.parameters():
            torch.nn.init.normal_(weight)  # what it begins with must not matter
    CheckpointLoader(str(tmp_path / f"checkpoint_epoch={epoch}.pt"), _states(resumed)).attach(resumed)
    resumed.run()
    expected, got = weights(whole), weights(resumed)
    assert [name for name in PARTS if not torch.equal(expected[name], got[name])] == []
    assert int(resumed.state.iteration) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": None}, "got NoneType and 0.5"),
        ({"gan_share": 1.0}, "gan_share of 0 or more and below 1, got MovingAverage and 1"),
        ({"gan_share": -0.1}, "gan_share of 0 or more"),
        ({"patience": 3}, "expected options .*, got patience"),
    ],
)
def test_what_cannot_be_trained_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inversion(**options)


def test_with_fp16_every_players_loss_is_scaled() -> None:
    trainer = inversion(amp="fp16")
    scalers = [player.scaler for player in trainer.players]
    assert len({id(scaler) for scaler in scalers if scaler is not None}) == 3
    assert all(player.scaler is None for player in inversion(amp=True).players)
