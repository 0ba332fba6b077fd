"""An optimizer for short trainings: the step of each convolution is made orthogonal, all else follows Adam.

For trainings that have only minutes, in which each step has to count.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Returns nearly the orthogonal factor of a matrix `(m, n)`: its singular values are drawn towards 1 (to 0.7-1.2).

    Source: Newton-Schulz iteration with the coefficients of Jordan et al., "Muon", 2024.
    """
    a, b, c = _QUINTIC
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.T if matrix.shape[0] > matrix.shape[1] else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon for the convolutions of a network and Adam for the rest (norms, biases, stems and heads), as one optimizer.

    A convolution's weight `(out, in, x, y, z)` is taken as the matrix `(out, in*x*y*z)`. Matrices with a side under
    16, and convolutions of an image of one channel, go to Adam.

    Orthogonal steps let all singular values of a weight grow with every step. Weights that grow leave biases behind,
    and where features are normalised a step then changes ever less. Decay holds them.

    Args:
        network: whose parameters to move.
        lr: of Muon, in units of the step's spectral norm.
        adam_lr: of Adam.
        momentum: of Muon (Nesterov).
        betas: of Adam.
        weight_decay: share of Muon's weights, times `lr`, that is taken off at every step (Liu et al., "Muon is
            scalable for LLM training", 2025).
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 0.02,
        adam_lr: float = 0.002,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.1,
    ) -> None:
        parameters = [p for p in network.parameters() if p.requires_grad]
        matrices = [p for p in parameters if p.ndim > 2 and p.shape[1] > 1 and min(p.shape[0], p[0].numel()) >= 16]
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "lr": lr, "orthogonal": True},
            {"params": rest, "lr": adam_lr, "orthogonal": False},
        ]
        super().__init__(
            [g for g in groups if g["params"]],
            {"momentum": momentum, "betas": tuple(betas), "weight_decay": weight_decay},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            move = self._muon_step if group["orthogonal"] else self._adam_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move(parameter, parameter.grad, group)
        return loss

    def _muon_step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        state["mean"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["mean"], group["momentum"])
        matrix = ahead.reshape(ahead.shape[0], -1)
        scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalised(matrix).reshape(parameter.shape), alpha=-group["lr"] * scale)

    def _adam_step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        mean = state["mean"] / (1 - first ** state["step"])
        root = (state["square"] / (1 - second ** state["step"])).sqrt() + 1e-8
        parameter.addcdiv_(mean, root, value=-group["lr"])
