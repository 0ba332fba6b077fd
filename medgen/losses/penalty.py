"""Penalties on a discriminator's slope, which keep what it tells a generator meaningful.

Each takes (discriminator, real, fake) and returns a scalar to be added to the discriminator's loss.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Judge = Callable[[Tensor], Tensor]


def gradient_penalty(judge: Judge, real: Tensor, fake: Tensor, weight: float = 10.0) -> Tensor:
    """Squared distance of the slope from 1 on random points between real and fake images `(B, C, ...)`.

    The logits of one image, a map for a patch discriminator, are averaged before the slope is taken.

    Source: Gulrajani et al., "Improved training of Wasserstein GANs", NeurIPS 2017, equation 3.
    """
    share = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device)
    between = torch.lerp(fake, real, share)
    return weight * (_slopes(judge, between) - 1).square().mean()


def r1_penalty(judge: Judge, real: Tensor, fake: Tensor, weight: float = 10.0) -> Tensor:
    """Half the squared slope on real images, which makes the equilibrium an attractor.

    Source: Mescheder et al., "Which training methods for GANs do actually converge?", ICML 2018, equation 9.
    """
    del fake
    return 0.5 * weight * _slopes(judge, real).square().mean()


def _slopes(judge: Judge, images: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    total = judge(images).reshape(len(images), -1).mean(1).sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    # The norm's own gradient is infinite at 0.
    return (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
