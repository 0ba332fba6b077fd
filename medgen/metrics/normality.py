"""How normal a map of scores says that normal tissue is: what a training without a single lesion can be watched by."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.float32]


def score_item(heat: Volume, item: Mapping[str, Volume]) -> dict[str, float]:
    """Returns the mean of a map over the retina of a healthy eye, and the mean of its highest 5 %: the less the better.

    Args:
        heat: `(X, rows, Z)`.
        item: with `retina`, the mask of what is scored, on the same grid.
    """
    values = np.sort(heat[item["retina"] > 0])
    return {"heat": float(values.mean()), "top": float(values[-max(1, len(values) // 20) :].mean())}
