"""What a discriminator and its generator want of the logits: every objective in closed form, unbent.

MONAI's `PatchAdversarialLoss` bends the least-squares logits by a leaky ReLU and saturates the generator's hinge by
a tanh; these do neither. Logits are of any shape; all losses are means. `real_label` below 1 is one-sided label
smoothing (Salimans et al., NeurIPS 2016): it keeps a discriminator from growing certain.
"""

from torch import Tensor
from torch.nn import functional


def minimax_d_loss(real: Tensor, fake: Tensor, real_label: float = 1.0) -> Tensor:
    """Cross entropy of real against fake: -log D(real) - log(1 - D(fake)), with D the sigmoid of the logits.

    Source: Goodfellow et al., "Generative adversarial nets", NeurIPS 2014, equation 1.
    """
    smoothed = real_label * functional.softplus(-real) + (1 - real_label) * functional.softplus(real)
    return smoothed.mean() + functional.softplus(fake).mean()


def minimax_g_loss(fake: Tensor) -> Tensor:
    """log(1 - D(fake)): its gradient vanishes where the discriminator is sure, so it is for study, not for use."""
    return -functional.softplus(fake).mean()


def non_saturating_g_loss(fake: Tensor) -> Tensor:
    """-log D(fake): the same fixed point as minimax, with a gradient that is largest where the generator is worst."""
    return functional.softplus(-fake).mean()


def least_squares_d_loss(real: Tensor, fake: Tensor, real_label: float = 1.0) -> Tensor:
    """Half the squared distance of real logits from 1 and of fake logits from 0.

    Source: Mao et al., "Least squares generative adversarial networks", ICCV 2017, equation 9.
    """
    return 0.5 * ((real - real_label).square().mean() + fake.square().mean())


def least_squares_g_loss(fake: Tensor) -> Tensor:
    """Half the squared distance of fake logits from 1; 0 when the discriminator takes them for real."""
    return 0.5 * (fake - 1).square().mean()


def hinge_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """How far real logits fall short of 1 and fake logits exceed -1.

    Source: Lim and Ye, "Geometric GAN", 2017; Miyato et al., ICLR 2018.
    """
    return 0.5 * ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean())


def hinge_g_loss(fake: Tensor) -> Tensor:
    """Minus the mean of the fake logits: linear, so it never saturates."""
    return -fake.mean()


def wasserstein_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """How far the critic rates fake above real; only meaningful with a bound on its slope (`losses.penalty`).

    Source: Arjovsky et al., "Wasserstein generative adversarial networks", ICML 2017, equation 3.
    """
    return fake.mean() - real.mean()


def wasserstein_g_loss(fake: Tensor) -> Tensor:
    """Minus the mean of the critic's values."""
    return -fake.mean()
