"""What an MR of somebody might look like of whom there is a CT alone: right in what is dark, vague in all else.

CT numbers tell air, fat, fluid, flesh, marrow and cortical bone apart, and what a T1-weighted scanner makes of each is
known up to ranges. That is no pair: brain shows no anatomy, borders blur, nothing is measured. It tells a network that
learns without pairs which way is up.
"""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from medgen.simulate.head import smooth_noise
from medgen.simulate.signal import add_rician_noise

Array = npt.NDArray[np.float32]

# CT numbers [HU] between which signals run straight; `random_signals` gives one to each. Tissues lie as in
# `medgen.simulate.signal`; marrow is what is denser than flesh and less dense than the tables of the skull.
HU_NODES = (-1024.0, -350.0, -100.0, -60.0, 4.0, 12.0, 27.0, 38.0, 55.0, 90.0, 250.0, 500.0, 1000.0, 3071.0)
_FLESH_HU = (-30.0, 90.0)


def random_signals(rng: np.random.Generator) -> list[float]:
    """Draws the T1-weighted signal at each of `HU_NODES`, white matter 1.

    Returns:
        fat above white matter unless it is suppressed, fluid and cortical bone below all else, marrow anywhere.
    """
    fat = rng.uniform(0.9, 3.0) if rng.uniform() < 0.75 else rng.uniform(0.2, 0.9)
    fluid, grey, muscle = rng.uniform(0.1, 0.5), rng.uniform(0.5, 0.95), rng.uniform(0.4, 1.0)
    marrow, cortex = rng.uniform(0.15, 1.2), rng.uniform(0.0, 0.2)
    edge = 0.5 * (fat + muscle)
    return [0.0, 0.3 * edge, fat, edge, fluid, fluid, 1.0, grey, muscle, muscle, marrow, 0.6 * marrow, cortex, 0.0]


def guess_mr(ct_hu: npt.ArrayLike, rng: np.random.Generator) -> Array:
    """Draws a T1-weighted magnitude image `(X, Y, Z)` for a CT of the same shape `[HU]`, white matter at 0.3 to 1.5.

    Signals, texture, coil falloff and noise are drawn; flesh is smoothed first, as CT noise would else pass for
    anatomy. After the domain randomisation of Billot et al., "SynthSeg", Medical Image Analysis 86, 2023, with CT
    numbers in the place of labels.
    """
    ct = np.asarray(ct_hu, dtype=np.float32)
    flesh = ((ct > _FLESH_HU[0]) & (ct < _FLESH_HU[1])).astype(np.float32)
    around = gaussian_filter(ct * flesh, 0.8) / np.maximum(gaussian_filter(flesh, 0.8), 1e-3)
    image = np.interp(np.where(flesh > 0, around, ct), HU_NODES, random_signals(rng)).astype(np.float32)
    image *= 1 + rng.uniform(0.02, 0.15) * smooth_noise(ct.shape, rng.uniform(2.0, 8.0), rng)
    image *= np.exp(rng.uniform(0.0, 0.35) * smooth_noise(ct.shape, rng.uniform(25.0, 80.0), rng))
    scale = np.exp(rng.uniform(np.log(0.3), np.log(1.5)))  # where fat is bright, it sets the scale
    return add_rician_noise(np.maximum(image, 0) * np.float32(scale), rng.uniform(0, 0.06), rng)
