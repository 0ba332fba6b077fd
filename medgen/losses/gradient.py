"""Edges as a loss: what a mean over voxels blurs, its gradients show."""

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
        >>> float(masked_gradient_difference(0 * step, step, torch.ones_like(step)).round(decimals=4))
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


def _steps(image: Tensor, axis: int) -> Tensor:
    length = image.shape[axis] - 1
    return image.narrow(axis, 1, length) - image.narrow(axis, 0, length)
