"""CycleGAN's terms, each on numbers that can be worked out."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from medgen.engines.adversary import Adversary
from medgen.engines.health import HealthMonitor
from medgen.engines.player import MovingAverage, Player
from medgen.engines.pool import ImagePool
from medgen.engines.unpaired import CycleRules, Direction, UnpairedTrainer
from medgen.errors import NoInputError
from medgen.losses.adversarial import least_squares_d_loss, least_squares_g_loss
from medgen.losses.penalty import r1_penalty
from medgen.nets.cascade import CascadeGenerator


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.factor * x


def direction(factor: float, weight: float = 1.0, rate: float = 0.0, pool: int = 0) -> Direction:
    generator, judge = Scale(factor), Scale(1.0)
    players = [Player(n, torch.optim.SGD(n.parameters(), rate)) for n in (generator, judge)]
    adversary = Adversary(players[1], least_squares_d_loss, least_squares_g_loss, weight)
    return Direction(players[0], adversary, MovingAverage(generator, 0.5), ImagePool(pool))


def batches(count: int = 1) -> list[dict[str, Tensor]]:
    return [{"image": torch.full((2, 1, 2, 2, 2), 1.0), "target": torch.full((2, 1, 2, 2, 2), 3.0)}] * count


def trainer(forth: Direction, back: Direction, rules: CycleRules | None = None, epochs: int = 1) -> UnpairedTrainer:
    return UnpairedTrainer("cpu", epochs, batches(), forth, back, rules, {"seed": 1})


def test_the_terms_are_those_of_the_paper() -> None:
    forth, back = direction(2.0), direction(0.25)
    engine = trainer(forth, back, CycleRules(cycle_weight=10.0, identity_weight=0.5))
    engine.run()
    out = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
    # a=1 -> 2 -> 0.5; b=3 -> 0.75 -> 1.5; identities: 2*3 against 3, 0.25*1 against 1
    cycle = (1 - 0.5) + (3 - 1.5)
    identity = 0.5 * ((6 - 3) + (1 - 0.25))
    felt = 0.5 * (2 - 1) ** 2 + 0.5 * (0.75 - 1) ** 2
    assert out["cycle_loss"] == pytest.approx(cycle)
    assert out["g_loss"] == pytest.approx(felt)
    assert out["loss"] == pytest.approx(felt + 10 * (cycle + identity))
    # What health reads: the gradient of 0.5 * mean((f - 1)^2) at 16 voxels of f = 2.
    assert out["g_pull"] == pytest.approx(((2 - 1) / 16) * 16**0.5)
    assert out["back"]["g_pull"] == pytest.approx(((1 - 0.75) / 16) * 16**0.5)
    assert torch.equal(out["back"]["pred"], torch.full((2, 1, 2, 2, 2), 0.75))
    assert torch.equal(out["back"]["real"], torch.full((2, 1, 2, 2, 2), 1.0))
    assert {"d_accuracy", "d_norm", "g_norm"} <= out["back"].keys()


@pytest.mark.slow
def test_a_healthy_cycle_raises_no_alarm_and_one_whose_way_back_is_dead_does() -> None:
    generator = torch.Generator().manual_seed(0)
    data = [
        {"image": torch.rand(4, 1, 4, 4, 4, generator=generator), "target": 2 + torch.rand(4, 1, 4, 4, 4)}
        for _ in range(40)
    ]

    class Line(nn.Module):
        def __init__(self, inputs: int = 1, dead: bool = False) -> None:
            super().__init__()
            self.layer, self.dead = nn.Conv3d(inputs, 1, 1), dead

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * (0.0 if self.dead else 1.0)

    def run(dead: bool) -> list[str]:
        torch.manual_seed(0)
        ways = []
        for kaput in (False, dead):
            players = [Player(n, torch.optim.Adam(n.parameters(), 2e-3)) for n in (Line(dead=kaput), Line())]
            penalty = partial(r1_penalty, weight=1.0)
            ways.append(
                Direction(
                    players[0], Adversary(players[1], least_squares_d_loss, least_squares_g_loss, penalty=penalty)
                )
            )
        monitor = HealthMonitor(patience=200)
        options = {"seed": 1, "train_handlers": [monitor]}
        UnpairedTrainer("cpu", 20, data, *ways, CycleRules(identity_weight=0.0), options).run()
        return [finding.message for finding in monitor.findings]

    assert run(dead=False) == []
    assert any(message.startswith("way back: ") for message in run(dead=True))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_both_generators_move_in_half_precision(amp: str) -> None:
    forth, back = direction(2.0, rate=0.01), direction(0.25, rate=0.01)
    engine = UnpairedTrainer("cpu", 2, batches(3), forth, back, None, {"seed": 1, "amp": amp})
    engine.run()
    assert forth.generator.network.factor != 2.0
    assert back.generator.network.factor != 0.25
    assert forth.generator.refused == back.generator.refused == 0


def test_each_discriminator_sees_its_own_domain_alone() -> None:
    forth, back = direction(2.0), direction(0.25)
    trainer(forth, back).run()
    for_generator, real, fake = (x.unique().item() for x in forth.adversary.player.network.seen)
    assert (for_generator, real, fake) == (2.0, 3.0, 2.0)
    for_generator, real, fake = (x.unique().item() for x in back.adversary.player.network.seen)
    assert (for_generator, real, fake) == (0.75, 1.0, 0.75)


def test_a_perfect_cycle_without_adversaries_moves_nothing() -> None:
    forth, back = direction(2.0, weight=0.0, rate=0.1), direction(0.5, weight=0.0, rate=0.1)
    trainer(forth, back, CycleRules(identity_weight=0.0)).run()
    assert forth.generator.network.factor.item() == 2.0
    assert forth.adversary.player.network.seen == []


def test_the_anatomy_term_sees_source_and_translation() -> None:
    seen: list[tuple[float, float]] = []

    def anatomy(source: Tensor, translation: Tensor) -> Tensor:
        seen.append((source.unique().item(), translation.detach().unique().item()))
        return translation.mean()

    trainer(direction(2.0), direction(0.25), CycleRules(anatomy_loss=anatomy)).run()
    assert seen == [(1.0, 2.0), (3.0, 0.75)]


def test_a_resumed_cycle_equals_an_uninterrupted_one() -> None:
    def make(epochs: int) -> UnpairedTrainer:
        return UnpairedTrainer(
            "cpu",
            epochs,
            batches(7),
            direction(1.5, rate=0.01, pool=3),
            direction(0.5, rate=0.01, pool=3),
            None,
            {"seed": 1},
        )

    whole, first, second = make(4), make(2), make(4)
    whole.run()
    first.run()
    for name in ("forth", "back"):
        getattr(second, name).load_state_dict(getattr(first, name).state_dict())
    second.load_state_dict(first.state_dict() | {"max_epochs": 4})
    second.run()
    for name in ("forth", "back"):
        assert torch.equal(
            getattr(second, name).generator.network.factor, getattr(whole, name).generator.network.factor
        )
        assert torch.equal(getattr(second, name).average.network.factor, getattr(whole, name).average.network.factor)


def test_a_cycle_learns_the_map_between_two_domains() -> None:
    """Intensities of one domain are twice the other's: what makes the fakes real is a factor of 2, and back a half."""
    torch.manual_seed(0)
    data = [{"image": torch.rand(16, 1) + 0.5, "target": 2 * torch.rand(16, 1) + 1} for _ in range(40)]

    def way(start: float) -> Direction:
        generator = Scale(start)
        judge = nn.Sequential(nn.Linear(1, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
        adversary = Adversary(
            Player(judge, torch.optim.Adam(judge.parameters(), 5e-3, (0.5, 0.99))),
            least_squares_d_loss,
            least_squares_g_loss,
            1.0,
        )
        return Direction(Player(generator, torch.optim.Adam(generator.parameters(), 1e-2, (0.5, 0.99))), adversary)

    forth, back = way(1.0), way(1.0)
    rules = CycleRules(torch.nn.functional.mse_loss, cycle_weight=1.0, identity_weight=0.0)
    UnpairedTrainer("cpu", 8, data, forth, back, rules, {"seed": 1}).run()
    assert forth.generator.network.factor.item() == pytest.approx(2.0, rel=0.15)
    assert back.generator.network.factor.item() == pytest.approx(0.5, rel=0.15)


def test_anchors_are_asked_for_each_direction_and_weighed() -> None:
    forth, back = direction(2.0, weight=0.0), direction(0.25, weight=0.0)
    forth.anchor = lambda source, translation: (translation - source).mean()  # 2 - 1
    back.anchor = lambda source, translation: (source - translation).mean()  # 3 - 0.75
    engine = trainer(forth, back, CycleRules(cycle_weight=0.0, identity_weight=0.0, anchor_weight=2.0))
    engine.run()
    assert engine.state.output["loss"] == pytest.approx(2 * (1 + 2.25))


def test_noise_comes_between_the_two_ways_of_the_cycle_alone() -> None:
    forth, back = direction(2.0), direction(0.25)
    trainer(forth, back, CycleRules(identity_weight=0.0, noise=0.1)).run()
    first, returned = forth.generator.network.seen
    assert first.unique().item() == 1.0
    assert 0 < (returned - 0.75).abs().max() < 1
    assert forth.adversary.player.network.seen[0].unique().item() == 2.0


def test_a_guess_at_the_source_is_translated_and_held_against_the_target() -> None:
    forth, back = direction(2.0, weight=0.0), direction(0.25, weight=0.0)
    rules = CycleRules(cycle_weight=0.0, identity_weight=0.0, guess_weight=3.0)
    guesses = [{**batch, "guess": torch.full((2, 1, 2, 2, 2), 0.5)} for batch in batches()]
    engine = UnpairedTrainer("cpu", 1, guesses, forth, back, rules, {"seed": 1})
    engine.run()
    assert engine.state.output["loss"] == pytest.approx(3 * abs(2 * 0.5 - 3))


def test_a_guess_may_be_judged_by_a_loss_of_its_own() -> None:
    forth, back = direction(2.0, weight=0.0), direction(0.25, weight=0.0)
    rules = CycleRules(cycle_weight=0.0, identity_weight=0.0, guess_weight=3.0, guess_loss=torch.nn.functional.mse_loss)
    guesses = [{**batch, "guess": torch.full((2, 1, 2, 2, 2), 0.5)} for batch in batches()]
    engine = UnpairedTrainer("cpu", 1, guesses, forth, back, rules, {"seed": 1})
    engine.run()
    assert engine.state.output["loss"] == pytest.approx(3 * (2 * 0.5 - 3) ** 2)


def test_in_the_first_epochs_guesses_alone_are_learnt() -> None:
    forth, back = direction(2.0, rate=0.1), direction(0.25, rate=0.1)
    guesses = [{**batch, "guess": torch.full((2, 1, 2, 2, 2), 0.5)} for batch in batches()]
    rules = CycleRules(guess_weight=1.0, guess_epochs=2)
    engine = UnpairedTrainer("cpu", 2, guesses, forth, back, rules, {"seed": 1})
    engine.run()
    assert forth.generator.network.factor.item() == pytest.approx(2.0 + 2 * 0.1 * 0.5)  # |0.5 f - 3| falls by 0.5 f
    assert forth.average is not None
    assert forth.average.network.factor.item() > 2.0
    assert back.generator.network.factor.item() == 0.25
    assert back.generator.network.seen == forth.adversary.player.network.seen == []
    UnpairedTrainer("cpu", 3, guesses, forth, back, rules, {"seed": 1}).run()
    assert back.generator.network.factor.item() != 0.25


def test_the_way_back_learns_to_guess_if_asked() -> None:
    forth, back = direction(2.0, rate=0.1), direction(0.25, rate=0.1)
    guesses = [{**batch, "guess": torch.full((2, 1, 2, 2, 2), 0.5)} for batch in batches()]
    rules = CycleRules(guess_weight=1.0, guess_epochs=1, guess_back=True)
    engine = UnpairedTrainer("cpu", 1, guesses, forth, back, rules, {"seed": 1})
    engine.run()
    assert forth.generator.network.factor.item() == pytest.approx(2.0 + 0.1 * 0.5)
    assert back.generator.network.factor.item() == pytest.approx(0.25 - 0.1)  # down, a gradient of 3 clipped at 1
    assert engine.state.output["loss"] == pytest.approx(abs(2 * 0.5 - 3) + abs(0.25 * 3 - 0.5))


def test_guesses_are_learnt_without_images_and_the_cycle_asks_for_them() -> None:
    forth, back = direction(2.0, rate=0.1), direction(0.25, rate=0.1)
    guesses = [{"target": batches()[0]["target"], "guess": torch.full((2, 1, 2, 2, 2), 0.5)}]
    rules = CycleRules(guess_weight=1.0, guess_epochs=1)
    UnpairedTrainer("cpu", 1, guesses, forth, back, rules, {"seed": 1}).run()
    assert forth.generator.network.factor.item() > 2.0
    ahead = UnpairedTrainer("cpu", 2, guesses, forth, back, rules, {"seed": 1})
    with pytest.raises(NoInputError, match="image, as epochs after 1 learn from the cycle, got target, guess"):
        ahead.run()
    assert ahead.state.iteration == 1  # at once, not after the epochs of guesses


def test_a_direction_can_train_the_first_stage_of_a_cascade_alone() -> None:
    network = CascadeGenerator((4,), (1,), (4,), (1,))
    forth, back = direction(2.0, weight=0.0), direction(0.25, weight=0.0)
    forth.generator = Player(network, torch.optim.SGD(network.parameters(), 0.1))
    forth.translate, forth.average = network.first, None
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = {key: torch.rand(1, 1, 8, 8, 8) for key in ("image", "target", "guess")}
    rules = CycleRules(guess_weight=1.0, guess_epochs=1)
    UnpairedTrainer("cpu", 2, [images], forth, back, rules, {"seed": 1}).run()
    moved = {name.split(".")[0] for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"coarse"}
