"""A memory of generated images, so that a discriminator does not forget what it has learned to reject."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ImagePool:
    """Hands out, half of the time, an earlier image in place of the new one, which it then keeps instead.

    Args:
        size: images kept; 0 hands every image through.

    Source: Shrivastava et al., CVPR 2017, section 2.3; 50 images as in Zhu et al., ICCV 2017.
    """

    def __init__(self, size: int = 50) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def exchange(self, batch: Tensor) -> Tensor:
        """Returns a batch of the same shape `(B, ...)`, in part of earlier images; while it fills, the batch itself."""
        if self.size == 0:
            return batch
        chosen = []
        for image in batch.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif bool(torch.rand(()) < 0.5):
                place = int(torch.randint(len(self.images), ()))
                image, self.images[place] = self.images[place].to(image.device), image.clone()  # noqa: PLW2901
            chosen.append(image)
        return torch.stack(chosen)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold for a resumed training to see the same images."""
        return {"images": [image.cpu() for image in self.images]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.images = list(state["images"])
