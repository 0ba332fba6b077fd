"""One loss for a chain of generators: every stage is held to the truth at its own resolution."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

MaskedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class ChainLoss(nn.Module):
    """Reconstruction at every stage, and structure at the last one.

    Args:
        reconstruction: loss of (prediction, target, mask), for every stage.
        structure: the same, for the last stage only; None leaves it out.
        structure_weight: its weight.
        coarse_weight: weight of each stage before the last.
        structure_box: side of the random box in which `structure` is measured `[voxels]`, to save time; 0 measures
            it everywhere.
    """

    def __init__(
        self,
        reconstruction: MaskedLoss,
        structure: MaskedLoss | None = None,
        structure_weight: float = 0.3,
        coarse_weight: float = 0.5,
        structure_box: int = 64,
    ) -> None:
        super().__init__()
        self.reconstruction, self.structure = reconstruction, structure
        self.structure_weight, self.coarse_weight, self.structure_box = structure_weight, coarse_weight, structure_box

    def forward(self, outputs: Sequence[Tensor], target: Tensor, mask: Tensor) -> Tensor:
        """Returns the scalar loss.

        Args:
            outputs: images of the stages, coarse to fine; the last one `(B, 1, X, Y, Z)`, the others smaller by a
                whole factor.
            target: `(B, 1, X, Y, Z)`.
            mask: where the target counts, 0 to 1, same shape.
        """
        loss = self.reconstruction(outputs[-1], target, mask)
        for image in outputs[:-1]:
            loss = loss + self.coarse_weight * self.reconstruction(image, *masked_pool(target, mask, image.shape[2:]))
        if self.structure is not None and self.structure_weight > 0:
            box = self._box(target.shape[2:])
            loss = loss + self.structure_weight * self.structure(outputs[-1][box], target[box], mask[box])
        return loss

    def _box(self, shape: Sequence[int]) -> tuple[slice, ...]:
        box = [slice(None), slice(None)]
        for n in shape:
            side = min(n, self.structure_box or n)
            start = int(torch.randint(n - side + 1, ()))
            box.append(slice(start, start + side))
        return tuple(box)


def masked_pool(target: Tensor, mask: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Averages the target over the mask onto a coarser grid; returns it with the share of the mask in each voxel."""
    size = (shape[0], shape[1], shape[2])
    share = functional.adaptive_avg_pool3d(mask.float(), size)
    total = functional.adaptive_avg_pool3d(target.float() * mask.float(), size)
    return total / share.clamp_min(1e-3), share
