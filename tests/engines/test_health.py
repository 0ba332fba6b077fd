"""Each failure is provoked on purpose and recognised; a healthy training raises no alarm."""

from functools import partial

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from medgen.engines.health import HealthMonitor
from medgen.engines.player import Player
from medgen.engines.symptoms import Limits, collapse, dead, mean_distance, oscillation, rhythm_of, vanishing
from medgen.losses.adversarial import (
    hinge_d_loss,
    hinge_g_loss,
    least_squares_d_loss,
    least_squares_g_loss,
    minimax_d_loss,
    minimax_g_loss,
    non_saturating_g_loss,
    wasserstein_d_loss,
    wasserstein_g_loss,
)
from medgen.losses.penalty import gradient_penalty, r1_penalty
from tests.engines.toys import Dirac, gan, ring

LIMITS = Limits()


def ailments(monitor: HealthMonitor) -> set[str]:
    return {finding.ailment for finding in monitor.findings}


def point(spread: float = 0.3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [{"image": spread * torch.randn(32, 1, generator=generator)} for _ in range(50)]


HEALTHY = {
    "non-saturating": ((minimax_d_loss, non_saturating_g_loss), partial(r1_penalty, weight=1.0)),
    "least squares": ((least_squares_d_loss, least_squares_g_loss), partial(r1_penalty, weight=1.0)),
    "hinge": ((hinge_d_loss, hinge_g_loss), partial(r1_penalty, weight=1.0)),
    "Wasserstein": ((wasserstein_d_loss, wasserstein_g_loss), partial(gradient_penalty, weight=1.0)),
}


# One by default, the others take their time.
@pytest.mark.parametrize(
    "objective", ["hinge", *(pytest.param(o, marks=pytest.mark.slow) for o in HEALTHY if o != "hinge")]
)
def test_a_healthy_training_raises_no_alarm(objective: str) -> None:
    losses, penalty = HEALTHY[objective]
    monitor = HealthMonitor()
    gan((1e-3, 2e-3), losses, penalty, epochs=30, monitor=monitor).run()
    assert monitor.findings == []
    assert monitor.summary()["diversity"] > 0.5


def test_a_saturated_minimax_is_a_vanishing_gradient() -> None:
    monitor = HealthMonitor()
    gan((1e-5, 1e-2), (minimax_d_loss, minimax_g_loss), epochs=10, monitor=monitor).run()
    assert "vanishing" in ailments(monitor)
    assert "non-saturating" in monitor.findings[0].message


def test_a_generator_that_outruns_its_judge_collapses() -> None:
    monitor = HealthMonitor()
    gan((1e-2, 1e-4), epochs=10, monitor=monitor).run()
    assert "collapse" in ailments(monitor)


def dirac(penalty: float, monitor: HealthMonitor) -> None:
    """The GAN of Mescheder et al. (ICML 2018): without a penalty it circles its equilibrium for ever."""
    r1 = partial(r1_penalty, weight=penalty) if penalty else None
    networks = (Dirac(1.0), Dirac(1.0, slope=True))
    gan((0.1, 0.1), penalty=r1, epochs=20, data=point(), networks=networks, monitor=monitor, sgd=True).run()


def test_a_gan_that_circles_its_equilibrium_oscillates_and_its_penalty_heals_it() -> None:
    ill, healed = HealthMonitor(), HealthMonitor()
    dirac(0.0, ill)
    dirac(1.0, healed)
    assert "oscillation" in ailments(ill)
    assert "oscillation" not in ailments(healed)


class Broken(nn.Module):
    """A discriminator that turns into NaN, or that nothing flows through."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 1)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)


@pytest.mark.parametrize(("factor", "word"), [(float("nan"), "not finite"), (0.0, "exactly 0")])
def test_dead_updates_are_named(factor: float, word: str) -> None:
    monitor = HealthMonitor(patience=100)
    data = [{"image": batch["image"][:8]} for batch in ring()]
    gan(epochs=4, data=data, networks=(nn.Linear(1, 2), Broken(factor)), monitor=monitor).run()
    assert "dead" in ailments(monitor)
    assert word in monitor.findings[0].message


def test_stop_ends_the_training() -> None:
    monitor = HealthMonitor("stop")
    trainer = gan((1e-2, 1e-4), epochs=30, monitor=monitor)
    trainer.run()
    assert trainer.state.iteration < 30 * 50
    assert len(monitor.findings) == 1


def test_slow_halves_the_rate_of_the_discriminator() -> None:
    trainer = gan((1e-5, 1e-2), (minimax_d_loss, minimax_g_loss), epochs=10)
    optimizer = trainer.adversary.player.optimizer
    monitor = HealthMonitor("slow", [optimizer], window=2000)
    monitor.attach(trainer)
    trainer.run()
    vanished = sum(finding.ailment != "collapse" for finding in monitor.findings)
    assert vanished >= 1
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.5**vanished)


def test_a_remedy_that_would_do_harm_or_cannot_be_had_is_not_said_to_be_done() -> None:
    trainer = gan((1e-2, 1e-4), epochs=10)
    optimizer = trainer.adversary.player.optimizer
    monitor = HealthMonitor("slow", [optimizer])
    monitor.attach(trainer)
    trainer.run()
    assert {(finding.ailment, finding.remedy) for finding in monitor.findings} == {("collapse", "warn")}
    assert optimizer.param_groups[0]["lr"] == 1e-4

    never_well = HealthMonitor("rollback", [optimizer], {"rival": trainer.adversary.player}, patience=10, every=10)
    engine = Engine(lambda engine, batch: {"loss": float("nan")})
    never_well.attach(engine)
    engine.run(range(40))
    assert [(finding.ailment, finding.remedy) for finding in never_well.findings] == [("dead", "slow")]


def test_the_way_back_of_a_cycle_is_judged_too() -> None:
    monitor = HealthMonitor(patience=50)
    well, ill = {"loss": 1.0, "g_norm": 1.0}, {"loss": 1.0, "g_norm": 0.0}
    engine = Engine(lambda engine, batch: {**well, "back": ill})
    monitor.attach(engine)
    engine.run(range(100))
    assert [finding.message.partition(":")[0] for finding in monitor.findings] == ["way back"]
    assert monitor.summary() == {"g_norm": 1.0, "back_g_norm": 0.0}


def test_rollback_returns_to_the_last_healthy_epoch() -> None:
    trainer = gan((1e-3, 1e-3), penalty=partial(r1_penalty, weight=1.0), epochs=8)
    players = {"generator": trainer.generator, "discriminator": trainer.adversary.player}
    monitor = HealthMonitor(
        "rollback", [trainer.adversary.player.optimizer], players, patience=100, every=25, window=200
    )
    ends: dict[int, Tensor] = {}
    after: list[Tensor] = []

    def poison(engine: Engine) -> None:
        if 300 < engine.state.iteration <= 350 and not monitor.findings:
            engine.state.output["g_norm"] = float("nan")

    def look(engine: Engine) -> None:
        if monitor.findings and not after:
            after.append(_weights(trainer.generator))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, poison)
    monitor.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: ends.update({e.state.epoch: _weights(trainer.generator)})
    )
    trainer.run()
    assert [(finding.ailment, finding.remedy, finding.epoch) for finding in monitor.findings] == [
        ("dead", "rollback", 7)
    ]
    assert torch.equal(after[0], ends[6])
    assert trainer.adversary.player.optimizer.param_groups[0]["lr"] == pytest.approx(5e-4)


def test_an_epoch_that_is_still_ill_is_not_kept_as_healthy() -> None:
    trainer = gan((1e-3, 1e-3), penalty=partial(r1_penalty, weight=1.0), epochs=8)
    players = {"generator": trainer.generator, "discriminator": trainer.adversary.player}
    monitor = HealthMonitor(
        "rollback", [trainer.adversary.player.optimizer], players, patience=50, every=25, window=125
    )
    ends: dict[int, Tensor] = {}

    def poison(engine: Engine) -> None:
        if engine.state.iteration > 100:
            engine.state.output["g_norm"] = float("nan")

    trainer.add_event_handler(Events.ITERATION_COMPLETED, poison)
    monitor.attach(trainer)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: ends.update({e.state.epoch: _weights(trainer.generator)})
    )
    trainer.run()
    assert len(monitor.findings) >= 2  # it goes on being ill
    _, state = monitor._healthy[-1]
    kept = torch.cat([p.flatten() for p in state["generator"]["network"].values()])
    assert any(torch.equal(kept, ends[epoch]) for epoch in (1, 2))


class Clock:
    """Something with a state: the iteration."""

    def __init__(self) -> None:
        self.iteration = 0
        self.returned_to: list[int] = []

    def state_dict(self) -> dict[str, int]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.returned_to.append(state["iteration"])


def _played(begins: int, iterations: int, monitor: HealthMonitor, clock: Clock, ill: str) -> None:
    """Epochs of 50 iterations that are healthy up to one of them."""
    draw = torch.Generator().manual_seed(1)

    def iterate(engine: Engine, batch: int) -> dict[str, object]:
        clock.iteration = int(engine.state.iteration)
        sick = clock.iteration > begins and not clock.returned_to
        real = torch.randn(4, 1, 4, 4, generator=draw)
        spread = 0.0 if sick and ill == "collapse" else 1.0
        pull = 1e-4 if sick and ill == "vanishing" else 1.0
        fake = spread * torch.randn(4, 1, 4, 4, generator=draw)
        return {"loss": 1.0, "g_pull": pull, "d_accuracy": 1.0, "pred": fake, "real": real}

    engine = Engine(iterate)
    monitor.attach(engine)
    engine.run(range(50), max_epochs=iterations // 50)


@pytest.mark.parametrize("ill", ["vanishing", "collapse"])
@pytest.mark.parametrize("begins", [1000, 3000])
def test_a_late_failure_is_found_soon_and_rolled_back_to_before_it_began(ill: str, begins: int) -> None:
    clock = Clock()
    monitor = HealthMonitor("rollback", checkpoint={"clock": clock})
    _played(begins, begins + 600, monitor, clock, ill)
    assert [finding.ailment for finding in monitor.findings] == [ill]
    assert monitor.findings[0].iteration <= begins + 400
    assert len(clock.returned_to) == 1
    assert begins - 400 <= clock.returned_to[0] <= begins


def test_a_resumed_watch_finds_what_one_that_never_stopped_finds() -> None:
    whole, first, second = HealthMonitor(), HealthMonitor(), HealthMonitor()
    _played(500, 900, whole, Clock(), "collapse")
    _played(500, 600, first, Clock(), "collapse")
    second.load_state_dict(first.state_dict())
    assert not first.findings
    _played(0, 300, second, Clock(), "collapse")
    assert {finding.ailment for finding in whole.findings} == ailments(second) == {"collapse"}
    assert second._seen == whole._seen


def _weights(player: Player) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in player.network.parameters()])


@pytest.mark.parametrize(("remedy", "word"), [("rollback", "checkpoint"), ("slow", "optimizers")])
def test_a_remedy_without_its_means_is_refused(remedy: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        HealthMonitor(remedy)  # type: ignore[arg-type]


def test_rhythms_are_measured() -> None:
    time = np.arange(300)
    noise = np.random.default_rng(0).normal(size=300)
    assert rhythm_of(np.sin(2 * np.pi * time / 30) + 0.01 * time) == (30, pytest.approx(1.0, abs=0.05))
    assert rhythm_of(noise)[1] < 0.4
    assert rhythm_of(np.exp(-time / 50))[1] < 0.6
    assert rhythm_of(np.zeros(300)) == (0, 0.0)


def test_a_rhythm_of_one_epoch_is_that_of_the_data() -> None:
    wave = np.sin(2 * np.pi * np.arange(300) / 30)
    history, gaps = {"g_loss": list(wave), "d_loss": list(-wave)}, wave[:, None]
    assert oscillation(history, gaps, 1.0, LIMITS) is not None
    assert oscillation(history, gaps, 1.0, LIMITS, epoch_length=30) is None
    assert oscillation(history, gaps, 100.0, LIMITS) is None  # too small a swing to matter


def test_each_symptom_needs_its_numbers() -> None:
    assert vanishing({}, LIMITS) is None
    assert collapse({"diversity": [0.1]}, LIMITS) is None
    assert dead({"g_norm": [float("nan")] * 3}, LIMITS) is None
    assert oscillation({}, np.zeros((0, 1)), 1.0, LIMITS) is None


def test_a_sure_discriminator_that_still_pulls_is_no_symptom() -> None:
    pull = list(np.linspace(1.0, 0.5, 100))
    assert vanishing({"g_pull": pull, "d_accuracy": [1.0] * 100}, LIMITS) is None
    assert vanishing({"g_pull": [*pull[:50], *[0.001] * 50], "d_accuracy": [1.0] * 100}, LIMITS) is not None
    assert vanishing({"g_pull": [*pull[:50], *[0.001] * 50], "d_accuracy": [0.6] * 100}, LIMITS) is None


def test_a_pull_that_fades_slowly_is_held_against_the_strongest_ever() -> None:
    fading, sure = 0.995 ** np.arange(1600), 1.0
    history = {"g_pull": list(fading[-400:]), "d_accuracy": [sure] * 400}
    assert vanishing(history, LIMITS) is None  # within the window it lost no more than the rest
    assert vanishing(history, LIMITS, largest=1.0) is not None

    monitor = HealthMonitor(window=400)
    engine = Engine(lambda engine, batch: {"loss": 1.0, "g_pull": fading[batch], "d_accuracy": sure})
    monitor.attach(engine)
    engine.run(range(1600))
    assert ailments(monitor) == {"vanishing"}
    resumed = HealthMonitor()
    resumed.load_state_dict(monitor.state_dict())
    assert resumed.vitals[""].strongest_pull == monitor.vitals[""].strongest_pull > 0.9


def test_mean_distance_of_known_points() -> None:
    assert mean_distance([[0.0, 0.0], [3.0, 4.0]]) == pytest.approx(5.0)
    assert mean_distance([[1.0, 1.0]]) == 0
