"""How a prediction is judged: which numbers, in which units, and against which simple answer."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from medgen.errors import BundleError
from medgen.metrics.ct_noise import TISSUES_HU, score_noise, shift_by_tissue, texture_distance
from medgen.metrics.detection import bare_brain, best_brightness, score_detection
from medgen.metrics.hounsfield import LOWEST_HU, best_monotone_ct, body_mask, score_ct
from medgen.metrics.smoothing import best_total_variation
from medgen.metrics.synthesis import score_synthesis

Volume = npt.NDArray[np.float32]
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Protocol:
    """One frozen way to score.

    Attributes:
        name: as a bundle's metadata call it.
        metrics: title and digits of each score.
        baseline: name of the simple answer that is scored beside every prediction.
        score: of (prediction, truth, source, mask or None), all `(X, Y, Z)` on one grid; has every metric and `voxels`.
        simple: the baseline's image, of (source, truth, mask or None). It may look at the truth: no answer of its kind
            is better.
        outside: what a truth that lies on another grid is filled up with.
        in_own_units: metrics that rest on the prediction's units, and are not taken of a baseline in others.
    """

    name: str
    metrics: Mapping[str, tuple[str, int]]
    baseline: str
    score: Callable[[Volume, Volume, Volume, Volume | None], Scores]
    simple: Callable[[Volume, Volume, Volume | None], Volume]
    outside: float = 0.0
    in_own_units: frozenset[str] = frozenset()

    def score_simple(self, simple: Volume, truth: Volume, source: Volume, mask: Volume | None) -> Scores:
        """Returns the score of the baseline's image; NaN for what rests on the prediction's units."""
        score = self.score(simple, truth, source, mask)
        return {name: math.nan if name in self.in_own_units else value for name, value in score.items()}


def _score_synthesis(prediction: Volume, truth: Volume, source: Volume, mask: Volume | None) -> Scores:
    return vars(score_synthesis(prediction, truth, source, mask))


def _negative(source: Volume, truth: Volume, mask: Volume | None) -> Volume:
    return np.asarray(source.max() - source)


def _score_ct(prediction: Volume, truth: Volume, source: Volume, mask: Volume | None) -> Scores:
    return vars(score_ct(prediction, truth, mask))


def _monotone(source: Volume, truth: Volume, mask: Volume | None) -> Volume:
    return best_monotone_ct(source, truth, body_mask(truth) if mask is None else mask)


def _score_dose(prediction: Volume, truth: Volume, source: Volume, mask: Volume | None) -> Scores:
    soft, full = (score_noise(prediction, truth, mask, window) for window in ("soft", "full"))
    return {
        "psnr_db": soft.psnr_db,
        "ssim": soft.ssim,
        "rmse_hu": soft.rmse_hu,
        "shift_hu": soft.shift_hu,
        "full_rmse_hu": full.rmse_hu,
        "full_psnr_db": full.psnr_db,
        "full_ssim": full.ssim,
        "texture": texture_distance(prediction, truth),
        **{f"{tissue}_shift_hu": shift for tissue, shift in shift_by_tissue(prediction, truth, mask).items()},
        "voxels": soft.pixels,
    }


def _smoothed(source: Volume, truth: Volume, mask: Volume | None) -> Volume:
    return best_total_variation(source, truth)


def _score_detection(
    prediction: Volume, truth: Volume, source: Volume, mask: Volume | None, threshold: float | None = None
) -> Scores:
    return vars(score_detection(prediction, truth > 0.5, bare_brain(source) if mask is None else mask, threshold))


def _brightness(source: Volume, truth: Volume, mask: Volume | None) -> Volume:
    return best_brightness(source, truth > 0.5, bare_brain(source) if mask is None else mask)


PROTOCOLS: Mapping[str, Protocol] = {
    "synthesis": Protocol(
        "synthesis",
        {"psnr_db": ("PSNR [dB]", 2), "ssim": ("SSIM", 3), "hf_ratio": ("sharpness ratio", 2)},
        "negative",
        _score_synthesis,
        _negative,
    ),
    "hounsfield": Protocol(
        "hounsfield",
        {
            "mae_hu": ("MAE [HU]", 1),
            "psnr_db": ("PSNR [dB]", 2),
            "ssim": ("SSIM", 3),
            "bone_dice": ("Dice, bone", 3),
            "air_dice": ("Dice, air", 3),
        },
        "monotone",
        _score_ct,
        _monotone,
        outside=LOWEST_HU,
    ),
    "dose": Protocol(
        "dose",
        {  # in the window of -160 to 240 HU, but for those called full
            "psnr_db": ("PSNR [dB]", 2),
            "ssim": ("SSIM", 3),
            "rmse_hu": ("RMSE [HU]", 2),
            "shift_hu": ("mean shift [HU]", 2),
            "full_rmse_hu": ("RMSE full [HU]", 2),
            "full_psnr_db": ("PSNR full [dB]", 2),
            "full_ssim": ("SSIM full", 3),
            "texture": ("NPS distance", 2),
            **{f"{tissue}_shift_hu": (f"shift, {tissue} [HU]", 2) for tissue in TISSUES_HU},
        },
        "variation",
        _score_dose,
        _smoothed,
        outside=LOWEST_HU,
    ),
    "detection": Protocol(
        "detection",
        {
            "auroc": ("AUROC", 3),
            "auprc": ("AUPRC", 3),
            "best_dice": ("Dice, best", 3),
            "best_threshold": ("its threshold", 3),
            "dice": ("Dice, operating", 3),
            "lesion_share": ("lesion share", 4),
        },
        "brightness",
        _score_detection,
        _brightness,
        in_own_units=frozenset({"dice", "best_threshold"}),
    ),
}


def find_protocol(name: str, threshold: float | None = None) -> Protocol:
    """Returns the protocol of this name.

    Args:
        name: as a bundle's metadata call it.
        threshold: of `detection`: the operating point of the map, chosen without the truth that it is judged by.

    Raises:
        BundleError: there is none.
    """
    if name not in PROTOCOLS:
        raise BundleError(f"expected the metadata's `evaluation` to be one of {', '.join(PROTOCOLS)}, got {name!r}")
    protocol = PROTOCOLS[name]
    if name != "detection" or threshold is None:
        return protocol
    return replace(protocol, score=partial(_score_detection, threshold=threshold))
