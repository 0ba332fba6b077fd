"""How far a Gaussian code lies from the standard normal distribution, with the reduction said, not guessed."""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

Reduction = Literal["sum", "mean"]


def gaussian_kl(mean: Tensor, log_variance: Tensor, over_latents: Reduction = "sum") -> Tensor:
    """Returns KL(N(mean, variance) || N(0, 1)) in nats, averaged over the batch.

    Args:
        mean: `(B, ...)`.
        log_variance: same shape.
        over_latents: `sum` is the divergence of the whole code, which the evidence lower bound holds against a
            reconstruction summed over voxels; `mean` is that of one latent, for reconstructions averaged over voxels.

    Source: Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014, appendix B.

    Example:
        >>> import torch
        >>> float(gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3)))
        1.5
    """
    each = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1)
    return each.sum(1).mean() if over_latents == "sum" else each.mean()


class VoxelKl:
    """`gaussian_kl` of a window's whole code, in nats for each voxel of the window: the same weight suits any window.

    Args:
        window: size of a window [voxels].
    """

    def __init__(self, window: Sequence[int]) -> None:
        self.voxels = math.prod(window)

    def __call__(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Returns the scalar divergence, averaged over the batch."""
        return gaussian_kl(mean, log_variance) / self.voxels
