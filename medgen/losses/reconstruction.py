"""Voxelwise agreement in a mask, after an affine match of intensities where the target's scale is arbitrary."""

from collections.abc import Callable

from torch import Tensor, nn


def match_affine(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Returns a*prediction + b with the least-squares a >= 0 and b of each sample in the mask.

    Gradients flow through a and b.

    Args:
        prediction: `(B, 1, X, Y, Z)`.
        target: same shape.
        mask: same shape, weights from 0 to 1. A sample whose mask is empty comes back unchanged in shape, with a = 0.
    """
    axes = (1, 2, 3, 4)
    weight = mask / mask.sum(axes, keepdim=True).clamp_min(1.0)
    x_mean = (weight * prediction).sum(axes, keepdim=True)
    y_mean = (weight * target).sum(axes, keepdim=True)
    x, y = prediction - x_mean, target - y_mean
    variance = (weight * x * x).sum(axes, keepdim=True)
    a = ((weight * x * y).sum(axes, keepdim=True) / (variance + 1e-4)).clamp_min(0.0)
    return a * x + y_mean


class MaskedReconstructionLoss(nn.Module):
    """L1 and L2 in a mask, in part after an affine match: scans of another scale teach their contrast all the same.

    Args:
        matched: share of the loss that is measured after the match; the rest holds the prediction to the target's
            own scale.
        squared: weight of the squared error beside the absolute one. The mean (L2) is what PSNR rewards, the median
            (L1) is sharper.
    """

    def __init__(self, matched: float = 0.5, squared: float = 1.0) -> None:
        super().__init__()
        self.matched = matched
        self.squared = squared

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Returns the scalar loss of `(B, 1, X, Y, Z)` tensors, computed in float32."""
        prediction, target, mask = prediction.float(), target.float(), mask.float()
        fitted = match_affine(prediction, target, mask)
        return self.matched * self._error(fitted, target, mask) + (1 - self.matched) * self._error(
            prediction, target, mask
        )

    def _error(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        difference = mask * (prediction - target)
        total = mask.sum().clamp_min(1.0)
        return (difference.abs().sum() + self.squared * difference.square().sum()) / total


class LogErrorLoss(nn.Module):
    """The logarithm of the mean squared error of each slice, mean over slices: PSNR, but for a factor and the sign.

    Where some examples are much noisier than others, those alone would be learnt from: here a tenth less error counts
    the same in all.

    Source: as in Chen et al., "Simple baselines for image restoration", ECCV 2022 (PSNR loss).

    Args:
        floor: added to the mean squared error, in the target's units squared: slices of air alone have next to none.
    """

    def __init__(self, floor: float = 1e-4) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Returns the scalar loss of `(B, 1, X, Y, Z)` tensors, computed in float32; slices along Z."""
        prediction, target, mask = prediction.float(), target.float(), mask.float()
        axes = (1, 2, 3)
        error = (mask * (prediction - target)).square().sum(axes) / mask.sum(axes).clamp_min(1.0)
        return (error + self.floor).log().mean()


class StretchedLoss(nn.Module):
    """Another loss after a window of values was stretched, so that small differences within it weigh more.

    In a CT, fluid and brain are 30 HU apart while bone varies by hundreds, and its noise drowns what tells soft tissues
    apart. The stretch is monotone, so what is best for L1, the median, stays what it was.

    Args:
        loss: of (prediction, target) or (prediction, target, mask).
        low: where the window begins, in the target's units.
        high: where it ends.
        gain: slope within it; outside, 1.

    Source: the scale is that of Cormack units, Rorden et al., NeuroImage 61:957, 2012, with less gain.

    Example:
        >>> import torch
        >>> loss = StretchedLoss(torch.nn.L1Loss(), low=-0.15, high=0.1, gain=3.0)
        >>> round(float(loss(torch.tensor([0.0]), torch.tensor([0.03]))), 3)
        0.09
    """

    def __init__(self, loss: Callable[..., Tensor], low: float = -0.15, high: float = 0.1, gain: float = 3.0) -> None:
        super().__init__()
        self.loss, self.low, self.high, self.gain = loss, low, high, gain

    def forward(self, prediction: Tensor, target: Tensor, *mask: Tensor) -> Tensor:
        """Returns the scalar loss of `(B, 1, X, Y, Z)` tensors, computed in float32."""
        return self.loss(self._stretch(prediction.float()), self._stretch(target.float()), *mask)

    def _stretch(self, x: Tensor) -> Tensor:
        return x + (self.gain - 1) * (x - self.low).clamp(0, self.high - self.low)
