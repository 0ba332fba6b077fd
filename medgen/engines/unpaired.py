"""Trains two translators between two sets of images that have no pairs: CycleGAN.

Source: Zhu et al., "Unpaired image-to-image translation using cycle-consistent adversarial networks", ICCV 2017.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor

from medgen.engines.adversary import Adversary, gradient_norm
from medgen.engines.player import MovingAverage, Player, move
from medgen.engines.pool import ImagePool
from medgen.engines.trainer import Batch, ImageTrainer
from medgen.errors import NoInputError

ImageLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Direction:
    """One way of the cycle.

    Attributes:
        generator: translates into this direction's domain.
        adversary: judges images of that domain alone; its `weight` counts against the cycle's as it is.
        average: follows the generator, or None.
        pool: earlier translations that the discriminator is shown again.
        anchor: of (source, translation): what is known of this direction's images without a pair, or None. A cycle
            alone may settle on inverted contrast.
        translate: the pass through the generator, as `network.first` of a cascade whose first stage is trained alone;
            of the images that it returns, the last counts. None for all of it.
    """

    generator: Player
    adversary: Adversary
    average: MovingAverage | None = None
    pool: ImagePool = field(default_factory=ImagePool)
    anchor: ImageLoss | None = None
    translate: Callable[[Tensor], Tensor | list[Tensor]] | None = None

    def __call__(self, source: Tensor) -> Tensor:
        """Translates a source."""
        images = (self.translate or self.generator.network)(source)
        return images[-1] if isinstance(images, list) else images

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold."""
        state = {
            "generator": self.generator.state_dict(),
            "discriminator": self.adversary.player.state_dict(),
            "pool": self.pool.state_dict(),
        }
        return state if self.average is None else {**state, "average": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.generator.load_state_dict(state["generator"])
        self.adversary.player.load_state_dict(state["discriminator"])
        self.pool.load_state_dict(state["pool"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


@dataclass
class CycleRules:
    """What holds the translations to their sources.

    Attributes:
        cycle_loss: between an image and its return from the other domain.
        cycle_weight: of it; 10 in the paper.
        identity_weight: of a generator's change to an image that already is of its domain, relative to `cycle_weight`;
            it keeps intensities in place. 0 saves two passes.
        anatomy_loss: of (source, translation), for what both domains must share; a cycle alone may shift or swap
            anatomy and swap it back. None leaves it out.
        anatomy_weight: of it.
        anchor_weight: of the directions' anchors.
        guess_weight: of `guess_loss` between a target and the translation of a guess at its source, where batches have
            one; see `medgen.simulate.guess`.
        guess_loss: of (translation, target); None for `cycle_loss`.
        guess_epochs: epochs at the start in which the forward generator learns from guesses alone, at a fraction of the
            time: the cycle then starts near where it shall end.
        guess_back: in these epochs the backward generator learns to make guesses of targets, too. Of many scanners that
            is a middling one, but light and dark are where they belong when the cycle begins.
        noise: standard deviation of noise on a translation before it returns, in units of the image: fine patterns
            that hide the source in its translation do not survive it (Bashkirova et al., NeurIPS 2019).
    """

    cycle_loss: ImageLoss = torch.nn.functional.l1_loss
    cycle_weight: float = 10.0
    identity_weight: float = 0.5
    anatomy_loss: ImageLoss | None = None
    anatomy_weight: float = 1.0
    anchor_weight: float = 1.0
    guess_weight: float = 0.0
    guess_loss: ImageLoss | None = None
    guess_epochs: int = 0
    guess_back: bool = False
    noise: float = 0.0


class UnpairedTrainer(ImageTrainer):
    """Each iteration moves both generators by one loss, then both discriminators by one each.

    `engine.state.output` has `loss`, `g_loss` (both adversarial parts), `cycle_loss`, `d_loss`, `g_pull` and what
    `Adversary.learn` tells (of the forward direction), `pred` (translated `image`) and `real` (`target`); where the
    cycle is learnt, `back` has the same of the other direction.

    Args:
        device: where batches go.
        max_epochs: to train.
        train_data_loader: of batches with `image` and `target`, each `(B, C, ...)`, which need not belong together; and
            with `guess` at the target's source, if the rules give it a weight. While guesses alone are learnt, no
            `image` is needed.
        forth: from `image`'s domain to `target`'s: the one to keep.
        back: from `target`'s domain to `image`'s.
        rules: weights of the terms.
        options: those of `ImageTrainer`.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Batch],
        forth: Direction,
        back: Direction,
        rules: CycleRules | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.forth, self.back, self.rules = forth, back, rules or CycleRules()
        players = [p for d in (forth, back) for p in (d.generator, d.adversary.player)]
        averages = [(d.generator, d.average) for d in (forth, back)]
        super().__init__(device, max_epochs, train_data_loader, players, options, averages=averages)
        back.generator.scaler = forth.generator.scaler  # one loss moves both

    def _iteration(self, engine: Engine, batchdata: Batch) -> dict[str, Any]:
        for player in self.players:
            player.network.train()
        if "image" not in batchdata and int(self.state.max_epochs or 0) > self.rules.guess_epochs:
            raise NoInputError(
                f"expected batches with image, as epochs after {self.rules.guess_epochs} learn from the cycle, got "
                f"{', '.join(batchdata)}; let the dataset give both sides, or let all epochs learn from guesses"
            )
        (b,) = self._to_device(batchdata, "target")
        guess = self._to_device(batchdata, "guess")[0] if self.rules.guess_weight > 0 else None
        if guess is not None and self.state.epoch <= self.rules.guess_epochs:
            return {**self._learn_guess(guess, b), "real": b}
        (a,) = self._to_device(batchdata, "image")
        fake_b, fake_a, told, back = self._move_generators(a, b, guess)
        back |= self._teach(self.back, a, fake_a)
        told |= self._teach(self.forth, b, fake_b)
        return {**told, "pred": fake_b, "real": b, "back": {**back, "pred": fake_a, "real": a}}

    def _learn_guess(self, guess: Tensor, b: Tensor) -> dict[str, Any]:
        guessed, loss = self._guessed(guess, b)
        directions = [self.forth]
        if self.rules.guess_back:
            with self._autocast():
                drawn = self.back(b).float()
            loss = loss + self.rules.guess_weight * self.rules.cycle_loss(drawn, guess)
            directions.append(self.back)
        self._step(directions, loss)
        told = {"loss": loss.item(), "g_loss": 0.0, "cycle_loss": 0.0, "d_loss": 0.0}
        return {**told, "g_norm": self.forth.generator.norm, "pred": guessed.detach()}

    def _guessed(self, guess: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The translation of a guess, and its weighed distance from the target."""
        with self._autocast():
            translation = self.forth(guess).float()
        distance = self.rules.guess_loss or self.rules.cycle_loss
        return translation, self.rules.guess_weight * distance(translation, b)

    def _move_generators(
        self, a: Tensor, b: Tensor, guess: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, float], dict[str, float]]:
        """Returns both translations, and what each direction tells."""
        with self._autocast():
            fake_b, fake_a = self.forth(a), self.back(b)
            back_a = self.back(self._noisy(fake_b))
            back_b = self.forth(self._noisy(fake_a))
            felt_b, felt_a = self._felt(self.forth, fake_b), self._felt(self.back, fake_a)
        felt = felt_b + felt_a
        pulls = [
            {"g_pull": gradient_norm(felt, fake).item()} if felt.requires_grad else {}
            for felt, fake in ((felt_b, fake_b), (felt_a, fake_a))
        ]
        cycle = self.rules.cycle_loss(back_a.float(), a) + self.rules.cycle_loss(back_b.float(), b)
        loss = felt + self.rules.cycle_weight * (cycle + self._identity(a, b))
        if self.rules.anatomy_loss is not None:
            shared = self.rules.anatomy_loss(a, fake_b.float()) + self.rules.anatomy_loss(b, fake_a.float())
            loss = loss + self.rules.anatomy_weight * shared
        for direction, source, fake in ((self.forth, a, fake_b), (self.back, b, fake_a)):
            if direction.anchor is not None:
                loss = loss + self.rules.anchor_weight * direction.anchor(source, fake.float())
        if guess is not None:
            loss = loss + self._guessed(guess, b)[1]
        self._step([self.forth, self.back], loss)
        shared_by_both = {"loss": loss.item(), "g_loss": felt.item(), "cycle_loss": cycle.item()}
        told, back = (
            {**shared_by_both, **pull, "g_norm": direction.generator.norm}
            for direction, pull in zip((self.forth, self.back), pulls, strict=True)
        )
        return fake_b.float().detach(), fake_a.float().detach(), told, back

    def _step(self, directions: list[Direction], loss: Tensor) -> None:
        moved = move([direction.generator for direction in directions], loss)
        for direction, did in zip(directions, moved, strict=True):
            if did:
                self._follow(direction.generator)

    def _noisy(self, image: Tensor) -> Tensor:
        return image if self.rules.noise == 0 else image + self.rules.noise * torch.randn_like(image)

    def _identity(self, a: Tensor, b: Tensor) -> Tensor:
        if self.rules.identity_weight == 0:
            return torch.zeros((), device=a.device)
        with self._autocast():
            same_b, same_a = self.forth(b), self.back(a)
        return self.rules.identity_weight * (
            self.rules.cycle_loss(same_b.float(), b) + self.rules.cycle_loss(same_a.float(), a)
        )

    def _felt(self, direction: Direction, fake: Tensor) -> Tensor:
        adversary = direction.adversary
        if not adversary.is_felt(int(self.state.epoch)):
            return torch.zeros((), device=fake.device)
        return adversary.weight * adversary.felt(fake)

    def _teach(self, direction: Direction, real: Tensor, fake: Tensor) -> dict[str, float]:
        if not direction.adversary.plays(int(self.state.epoch)):
            return {"d_loss": 0.0}
        with self._autocast():
            return direction.adversary.learn(real, direction.pool.exchange(fake))
