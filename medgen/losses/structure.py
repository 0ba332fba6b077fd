"""Structural similarity as a loss: one minus the local SSIM, averaged in a mask."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_K1, _K2 = 0.01, 0.03


class MaskedSSIMLoss(nn.Module):
    """1 - SSIM in 3D with a Gaussian window, averaged over a mask; outside of it both images count as 0.

    Args:
        sigma_voxels: width of the Gaussian; 1.5 is that of the published index.
        radius_voxels: where it is cut off.
        data_range: of the target.

    Source: Wang et al., IEEE TIP 13(4), 2004. The window is separable, and borders are padded by their nearest voxel.
    """

    def __init__(self, sigma_voxels: float = 1.5, radius_voxels: int = 5, data_range: float = 1.0) -> None:
        super().__init__()
        offset = torch.arange(-radius_voxels, radius_voxels + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (offset / sigma_voxels) ** 2)
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)
        self.kernel: Tensor
        self.radius = radius_voxels
        self.c1, self.c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Returns the scalar loss of `(B, 1, X, Y, Z)` tensors, computed in float32."""
        mask = mask.float()
        a, b = prediction.float() * mask, target.float() * mask
        mean_a, mean_b, aa, bb, ab = torch.split(self._smooth(torch.cat([a, b, a * a, b * b, a * b], dim=1)), 1, dim=1)
        covariance = ab - mean_a * mean_b
        above = (2 * mean_a * mean_b + self.c1) * (2 * covariance + self.c2)
        below = (mean_a**2 + mean_b**2 + self.c1) * (aa - mean_a**2 + bb - mean_b**2 + self.c2)
        return 1 - (mask * above / below).sum() / mask.sum().clamp_min(1.0)

    def _smooth(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        for axis in range(3):
            shape = [1, 1, 1, 1, 1]
            shape[2 + axis] = -1
            padding = [0] * 6
            padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = self.radius
            x = functional.pad(x, padding, mode="replicate")
            x = functional.conv3d(x, self.kernel.reshape(shape).repeat(channels, 1, 1, 1, 1), groups=channels)
        return x
