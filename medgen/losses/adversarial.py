"""What a discriminator and its generator want of the logits: least squares and hinge, in closed form.

MONAI's `PatchAdversarialLoss` bends the least-squares logits by a leaky ReLU and saturates the generator's hinge by
a tanh; these do neither.
"""

from torch import Tensor


def least_squares_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the squared distance of real logits from 1 and of fake logits from 0.

    Source: Mao et al., "Least squares generative adversarial networks", ICCV 2017, equation 9.
    """
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


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
