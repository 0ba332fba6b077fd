"""A reconstruction and how far off it expects to be, learnt together."""

from collections.abc import Sequence

from torch import Tensor, nn

_SMALLEST, _LARGEST = -5.0, 3.0


class ExpectedErrorLoss(nn.Module):
    """The error of the first channel, and how well the second, the logarithm of a scale, predicts it (Laplace).

    Both are trained apart: the error counts as it is, not in proportion to the scale. Where a network is sure it would
    otherwise work at nothing else, and never become sure where it is not (Seitzer et al., "On the pitfalls of
    heteroscedastic uncertainty estimation with probabilistic neural networks", ICLR 2022, with beta = 1).

    Args:
        absolute: weight of the absolute error: its best answer is the median, which takes a doubtful lesion for none.
        squared: weight of the squared error: its best answer is the mean, which takes off as much of a doubtful lesion
            as it is probable, so that the residual ranks lesions by how probable they are.
        scale: weight of the second channel's share.
    """

    def __init__(self, absolute: float = 0.3, squared: float = 5.0, scale: float = 0.1) -> None:
        super().__init__()
        self.absolute, self.squared, self.scale = absolute, squared, scale

    def forward(self, outputs: Sequence[Tensor], target: Tensor, mask: Tensor) -> Tensor:
        """Returns the scalar loss, computed in float32.

        Args:
            outputs: the reconstruction `(B, 2, X, Y, Z)`, alone in a sequence; with one channel, the error alone.
            target: `(B, 1, X, Y, Z)`.
            mask: weight of each voxel, same shape.
        """
        made, weight = outputs[-1].float(), mask.float()
        total = weight.sum().clamp_min(1.0)
        error = (made[:, :1] - target.float()).abs()
        loss = (weight * (self.absolute * error + self.squared * error.square())).sum() / total
        if made.shape[1] > 1:
            log_scale = made[:, 1:2].clamp(_SMALLEST, _LARGEST)
            surprise = error.detach() * (-log_scale).exp() + log_scale
            inside = weight * (weight >= 1)  # the background is known too well to learn from
            loss = loss + self.scale * (inside * surprise).sum() / inside.sum().clamp_min(1.0)
        return loss
