"""What holds an unpaired translation the right way up: where nothing is, nothing comes."""

import torch
from torch import Tensor
from torch.nn import functional


class BackgroundLoss:
    """Mean absolute distance of a translation from the level of air, where its source is dark far and wide.

    A cycle is as content with an inverted image as with a right one; air around the body, which anyone can point at,
    tells the two apart.

    Args:
        below: a source is dark where the mean of 3 voxels along each axis stays below it.
        voxels: over a cube of so many voxels along each axis, odd: wider than any dark tissue is thick.
        level: of air in the translation.

    Example:
        >>> import torch
        >>> source = torch.zeros(1, 1, 8, 8, 16)
        >>> source[..., 8:] = 1.0
        >>> loss = BackgroundLoss(below=0.1, voxels=3, level=-1.0)
        >>> round(float(loss(source, torch.zeros_like(source))), 3), round(float(loss(source, source - 1)), 3)
        (1.0, 0.0)
    """

    def __init__(self, below: float, voxels: int, level: float) -> None:
        self.below, self.voxels, self.level = below, voxels, level

    def __call__(self, source: Tensor, translation: Tensor) -> Tensor:
        """Compares `(B, 1, X, Y, Z)` of both; 0 where a source has no background."""
        with torch.no_grad():
            smooth = functional.avg_pool3d(source.float(), 3, 1, 1, count_include_pad=False)
            for axis in range(3):  # a cube's maximum, one axis after the other: many times faster
                size = [self.voxels if a == axis else 1 for a in range(3)]
                smooth = functional.max_pool3d(smooth, size, 1, [n // 2 for n in size])
            empty = (smooth < self.below).float()
        return (empty * (translation.float() - self.level).abs()).sum() / empty.sum().clamp_min(1.0)
