"""Edges as a loss: what a mean over voxels blurs, its gradients show."""

import torch
from torch import Tensor


def masked_gradient_difference(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference between the sizes of the forward differences of two images, over the three axes.

    Only differences between two voxels of the mask count.

    Args:
        prediction: `(B, C, X, Y, Z)`.
        target: same shape.
        mask: `(B, 1, X, Y, Z)`, 0 to 1.

    Source: Nie et al., "Medical image synthesis with deep convolutional adversarial networks", IEEE TBME 65(12), 2018,
    equation 5, divided by the number of differences.

    Example:
        >>> import torch
        >>> step = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 4, 1, 1)
        >>> round(float(masked_gradient_difference(0 * step, step, torch.ones_like(step))), 4)
        0.3333
    """
    prediction, target, mask = prediction.float(), target.float(), mask.float()
    total, count = prediction.new_zeros(()), prediction.new_zeros(())
    for axis in (2, 3, 4):
        length = prediction.shape[axis] - 1
        if length < 1:
            continue
        both = mask.narrow(axis, 1, length) * mask.narrow(axis, 0, length)
        difference = _steps(prediction, axis).abs() - _steps(target, axis).abs()
        total = total + (both * difference.square()).sum()
        count = count + both.sum() * prediction.shape[1]
    return total / count.clamp_min(1.0)


def normalised_gradient_distance(image: Tensor, translation: Tensor, noise: float = 0.05) -> Tensor:
    """Mean distance of the directions of two images' gradients: 0 where edges run alike, whichever side is bright.

    For images of two modalities, whose edges lie in the same places although their intensities have no common scale.

    Args:
        image: `(B, 1, X, Y, Z)`.
        translation: same shape.
        noise: a gradient much smaller than this, in units of its image a voxel, counts for nothing.

    Source: Haber and Modersitzki, "Intensity gradient based registration and fusion of multi-modal images", MICCAI
    2006.

    Example:
        >>> import torch
        >>> step = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 4, 1, 1).expand(1, 1, 4, 4, 4)
        >>> inverted, turned = 1 - step, step.transpose(2, 3)
        >>> near, far = (float(normalised_gradient_distance(step, other)) for other in (inverted, turned))
        >>> near < far
        True
    """
    first, second = (_directions(x.float(), noise) for x in (image, translation))
    weight = first.square().sum(dim=1)
    alike = (first * second).sum(dim=1).square()
    return (weight - alike).clamp_min(0).sum() / weight.sum().clamp_min(1e-6)


def _directions(image: Tensor, noise: float) -> Tensor:
    """Gradients by forward differences `(B, 3, X - 1, Y - 1, Z - 1)`, of length near 1 where they exceed the noise."""
    corner = image[:, 0, :-1, :-1, :-1]
    steps = torch.stack(
        [image[:, 0, 1:, :-1, :-1] - corner, image[:, 0, :-1, 1:, :-1] - corner, image[:, 0, :-1, :-1, 1:] - corner],
        dim=1,
    )
    return steps / (steps.square().sum(dim=1, keepdim=True) + noise**2).sqrt()


def _steps(image: Tensor, axis: int) -> Tensor:
    length = image.shape[axis] - 1
    return image.narrow(axis, 1, length) - image.narrow(axis, 0, length)
