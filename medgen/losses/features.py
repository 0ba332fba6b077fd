"""Agreement of what a trained network sees in two images, rather than of their voxels: edges and texture."""

from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Sees(Protocol):
    """A network that tells what it sees on its way."""

    def features(self, image: Tensor) -> list[Tensor]:
        """Returns feature maps of an image `(B, 1, X, Y, Z)`, finest first."""


class FeatureLoss(nn.Module):
    """Squared difference of the features of two images, relative to those of the target, mean over levels.

    A network trained on the very kind of image, for the very task, takes the place of one trained on photographs: there
    is nothing to download, and CT numbers need not be turned into colours.

    Source: Johnson et al., "Perceptual losses for real-time style transfer and super-resolution", ECCV 2016; for CT,
    Yang et al., IEEE Trans Med Imaging 37:1348, 2018, with VGG.

    Args:
        network: with a method `features`; a copy of it is taken, on its device.
        weights: file with the copy's weights; it is read when the loss is first asked for, so that a training that
            leaves it out needs no such file.
    """

    def __init__(self, network: nn.Module, weights: str) -> None:
        super().__init__()
        self._eye = [network]  # in a list, so that it is no part of this module's parameters
        self._weights = weights

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Returns the scalar loss of `(B, 1, X, Y, Z)` tensors; outside of the mask both count as 0."""
        if self._weights:
            self._open()
        eye: Sees = self._eye[0]  # type: ignore[assignment]
        seen = eye.features(prediction * mask)
        with torch.no_grad():
            wanted = eye.features(target * mask)
        parts = [
            functional.mse_loss(a.float(), b.float()) / b.float().square().mean().clamp_min(1e-6)
            for a, b in zip(seen, wanted, strict=True)
        ]
        return torch.stack(parts).mean()

    def _open(self) -> None:
        eye = deepcopy(self._eye[0]).eval().requires_grad_(False)
        state = torch.load(self._weights, map_location="cpu", weights_only=True)
        eye.load_state_dict(state)
        self._eye, self._weights = [eye], ""
