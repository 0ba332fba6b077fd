"""Scans in which lesions would be bright, FLAIR and T2, from tissue fractions: person and scanner at random."""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from medgen.errors import IntensityError
from medgen.simulate.head import jittered, smooth_noise
from medgen.simulate.signal import RELAXATION, Tissue, add_rician_noise, inversion_recovery, spin_echo

Array = npt.NDArray[np.float32]
Contrast = Literal["FLAIR", "T2w"]

CONTRASTS: tuple[Contrast, ...] = ("FLAIR", "T2w")
_PARTS = ("csf", "grey", "white")


def random_brain_mr(
    fractions: Mapping[str, Array], contrast: Contrast, rng: np.random.Generator, voxel_mm: float = 1.0
) -> Array:
    """Returns a scan `(X, Y, Z)` of a brain, its grey and white matter near 1, 0 outside; noise included.

    Tissue is not even: each varies smoothly from place to place by some percent, more over larger distances.

    Args:
        fractions: of `csf`, `grey` and `white` in each voxel, `(X, Y, Z)`.
        contrast: `"FLAIR"` (fluid dark) or `"T2w"` (fluid bright).
        rng: of the draw.
        voxel_mm: size of a voxel.

    Raises:
        IntensityError: another contrast.
    """
    if contrast not in CONTRASTS:
        raise IntensityError(f"expected the contrast {' or '.join(CONTRASTS)}, got {contrast!r}")
    tissues, signal = _scanner(contrast, rng)
    solid = 0.7 * signal(tissues["grey"]) + 0.3 * signal(tissues["white"])
    shape = fractions["white"].shape
    image = np.zeros(shape, np.float32)
    for name in _PARTS:
        uneven = sum(
            np.float32(rng.uniform(0, most)) * smooth_noise(shape, length / voxel_mm, rng)
            for length, most in ((4.0, 0.04), (12.0, 0.06), (40.0, 0.06))
        )
        image += fractions[name] * np.float32(signal(tissues[name]) / solid) * (1 + np.asarray(uneven, np.float32))
    inside = sum(fractions[name] for name in _PARTS) > 0.3
    return np.asarray(add_rician_noise(image.clip(0), float(rng.uniform(0, 0.05)), rng) * inside, dtype=np.float32)


def _scanner(contrast: Contrast, rng: np.random.Generator) -> tuple[Mapping[str, Tissue], Callable[[Tissue], float]]:
    """Tissues of a person and a sequence as hospitals use them, drawn again until they look as in that contrast."""
    while True:
        field = RELAXATION[3.0 if rng.uniform() < 0.5 else 1.5]
        tissues = {name: jittered(field[name], rng) for name in _PARTS}
        signal = _flair(rng) if contrast == "FLAIR" else _t2(rng)
        fluid, grey, white = (signal(tissues[name]) for name in _PARTS)
        fits = fluid < 0.5 * white if contrast == "FLAIR" else fluid > 1.4 * grey
        if fits and white < grey < 1.6 * white:
            return tissues, signal


def _flair(rng: np.random.Generator) -> Callable[[Tissue], float]:
    tr, ti, te = rng.uniform(5000, 11000), rng.uniform(1600, 2800), rng.uniform(80, 150)
    return lambda tissue: inversion_recovery(tissue, tr_ms=tr, ti_ms=ti, te_ms=te)


def _t2(rng: np.random.Generator) -> Callable[[Tissue], float]:
    tr, te = rng.uniform(2500, 6500), rng.uniform(80, 130)
    return lambda tissue: spin_echo(tissue, tr_ms=tr, te_ms=te)
