"""How well a map of scores finds lesions, voxel by voxel in the brain, and beside it what brightness alone finds.

The protocol is frozen: every voxel of the brain counts once; AUROC and AUPRC (average precision: the area below the
steps of precision over recall) are scikit-learn's; Dice is that of the map above one threshold, the best one (which
looks at the truth) or a given one. AUPRC starts at the share of lesion voxels, so it compares within a patient only.

Source: Saito and Rehmsmeier, PLoS ONE 10:e0118432, 2015, on why AUROC flatters where lesions are rare.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from medgen.errors import IntensityError

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

SMOOTHINGS_VOXELS = (0.0, 1.0, 1.5)
ERODED_VOXELS = (0, 2)


@dataclass(frozen=True)
class DetectionScore:
    """Agreement of a map of scores with the lesions.

    Attributes:
        auroc: probability that a lesion voxel scores above a normal one, 0.5 by chance.
        auprc: average precision, the share of lesion voxels by chance.
        best_dice: of the map above its best threshold.
        best_threshold: that threshold.
        dice: of the map above the operating threshold; NaN where none was given.
        lesion_share: of the brain's voxels.
        voxels: of the brain.
    """

    auroc: float
    auprc: float
    best_dice: float
    best_threshold: float
    dice: float
    lesion_share: float
    voxels: int


def score_detection(
    heat: npt.ArrayLike, lesion: npt.ArrayLike, brain: npt.ArrayLike, threshold: float | None = None
) -> DetectionScore:
    """Scores a map by the frozen protocol of this module.

    Args:
        heat: scores `(X, Y, Z)`, larger where less normal.
        lesion: the truth on the same grid, positive inside.
        brain: what counts, positive inside.
        threshold: the operating point, chosen without this truth.

    Raises:
        IntensityError: shapes differ, or the brain holds no lesion voxel, or nothing else.
    """
    scores, truth, inside = np.asarray(heat, dtype=np.float32), np.asarray(lesion) > 0, np.asarray(brain) > 0
    if not scores.shape == truth.shape == inside.shape:
        raise IntensityError(f"expected three volumes on one grid, got {scores.shape}, {truth.shape}, {inside.shape}")
    values, labels = scores[inside], truth[inside]
    if not labels.any() or labels.all():
        raise IntensityError("expected lesion voxels and normal ones in the brain, got one kind; is this the mask?")
    precision, recall, thresholds = precision_recall_curve(labels, values)
    overlap = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
    best = int(overlap.argmax())
    return DetectionScore(
        auroc=float(roc_auc_score(labels, values)),
        auprc=float(average_precision_score(labels, values)),
        best_dice=float(overlap[best]),
        best_threshold=float(thresholds[best]),
        dice=float("nan") if threshold is None else dice(values > threshold, labels),
        lesion_share=float(labels.mean()),
        voxels=int(inside.sum()),
    )


def dice(found: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Returns twice the overlap over the sum of two masks; 1 where both are empty.

    Example:
        >>> dice([1, 1, 0, 0], [1, 0, 0, 0])
        0.6666666666666666
    """
    a, b = np.asarray(found) > 0, np.asarray(truth) > 0
    total = int(a.sum() + b.sum())
    return 2 * float((a & b).sum()) / total if total else 1.0


def best_brightness(image: npt.ArrayLike, lesion: npt.ArrayLike, brain: npt.ArrayLike) -> Volume:
    """Returns the answer of brightness alone that has the largest AUPRC, see `brightnesses`.

    It is chosen by the truth: no bright-lesion detector by one threshold on these is better.
    """
    inside, truth = np.asarray(brain) > 0, np.asarray(lesion) > 0
    found = brightnesses(image, brain).values()
    return max(found, key=lambda one: float(average_precision_score(truth[inside], one[inside])))


def brightnesses(image: npt.ArrayLike, brain: npt.ArrayLike) -> dict[str, Volume]:
    """Returns what brightness alone can answer, by name: raw or smoothed, with the brain's edge or with 0 there.

    Args:
        image: `(X, Y, Z)`, lesions bright.
        brain: on the same grid, positive inside.
    """
    volume = np.asarray(image, dtype=np.float32)
    deep = distance_transform_edt(np.pad(np.asarray(brain) > 0, 1))[1:-1, 1:-1, 1:-1]
    found = {}
    for sigma, edge in product(SMOOTHINGS_VOXELS, ERODED_VOXELS):
        smooth = gaussian_filter(volume, sigma) if sigma else volume
        name = f"brightness, sigma {sigma:g}" + (f", edge of {edge} voxels off" if edge else "")
        found[name] = np.asarray(np.where(deep > edge, smooth, 0) if edge else smooth, dtype=np.float32)
    return found


def bare_brain(image: npt.ArrayLike) -> Mask:
    """Returns where a stripped image shows its brain: above a fiftieth of its maximum, without holes."""
    volume = np.asarray(image)
    return np.asarray(binary_fill_holes(volume > 0.02 * volume.max()), dtype=np.bool_)


def score_item(prediction: npt.ArrayLike, item: Mapping[str, npt.ArrayLike]) -> dict[str, float]:
    """Scores a map against an item's `target`, the lesions, in its `brain`, as `medgen train` asks.

    NaN where there is nothing to find.
    """
    inside = np.asarray(item["target"])[np.asarray(item["brain"]) > 0] > 0
    if not inside.any() or inside.all():
        return dict.fromkeys(("auprc", "auroc", "best_dice"), float("nan"))
    score = score_detection(prediction, item["target"], item["brain"])
    return {"auprc": score.auprc, "auroc": score.auroc, "best_dice": score.best_dice}
