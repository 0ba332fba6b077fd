"""What a scanner shows of tissue: MR signal equations, CT numbers, receive field and noise.

All images are linear in the tissue fractions of a voxel: magnitudes add, as for tissues that are in phase.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medgen.geometry import Grid

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tissue:
    """What a tissue does to MR and X-rays.

    Attributes:
        t1_ms: longitudinal relaxation time.
        t2_ms: transverse relaxation time.
        density: protons relative to water.
        hu: CT number.
    """

    t1_ms: float
    t2_ms: float
    density: float
    hu: float


# 1.5 T: the parameters of the BrainWeb phantom (Collins et al., IEEE Trans Med Imaging 17:463, 1998), which gives fluid
# short times since its voxels are never pure. 3 T: grey and white matter and muscle from Stanisz et al., Magn Reson Med
# 54:507, 2005, fat from de Bazelaire et al., Radiology 230:652, 2004, fluid in round numbers. Cortical bone gives no
# signal. CT numbers: round textbook values.
RELAXATION: Mapping[float, Mapping[str, Tissue]] = {
    1.5: {
        "csf": Tissue(2569.0, 329.0, 1.0, 8.0),
        "grey": Tissue(833.0, 83.0, 0.86, 37.0),
        "white": Tissue(500.0, 70.0, 0.77, 28.0),
        "bone": Tissue(1.0, 0.1, 0.0, 1100.0),
        "fat": Tissue(350.0, 70.0, 1.0, -100.0),
        "muscle": Tissue(900.0, 47.0, 1.0, 55.0),
    },
    3.0: {
        "csf": Tissue(4000.0, 2000.0, 1.0, 8.0),
        "grey": Tissue(1820.0, 99.0, 0.86, 37.0),
        "white": Tissue(1084.0, 69.0, 0.77, 28.0),
        "bone": Tissue(1.0, 0.1, 0.0, 1100.0),
        "fat": Tissue(382.0, 68.0, 1.0, -100.0),
        "muscle": Tissue(1412.0, 50.0, 1.0, 55.0),
    },
}
AIR_HU = -1000.0


def spin_echo(tissue: Tissue, *, tr_ms: float, te_ms: float) -> float:
    """Signal of a spin echo: `density · (1 - exp(-TR/T1)) · exp(-TE/T2)`.

    Source: Haacke et al., Magnetic Resonance Imaging, 1999, chapter 8, for TE much shorter than TR.

    Example:
        >>> fluid, white = RELAXATION[1.5]["csf"], RELAXATION[1.5]["white"]
        >>> spin_echo(fluid, tr_ms=500, te_ms=10) < spin_echo(white, tr_ms=500, te_ms=10)
        True
        >>> spin_echo(fluid, tr_ms=5000, te_ms=90) > spin_echo(white, tr_ms=5000, te_ms=90)
        True
    """
    return float(tissue.density * -np.expm1(-tr_ms / tissue.t1_ms) * np.exp(-te_ms / tissue.t2_ms))


def gradient_echo(tissue: Tissue, *, tr_ms: float, te_ms: float, flip_degrees: float) -> float:
    """Signal of a spoiled gradient echo in the steady state, with T2 in place of T2*.

    Source: Ernst and Anderson, Rev Sci Instrum 37:93, 1966. At 90 degrees it is the saturation recovery of `spin_echo`.

    Example:
        >>> tissue = RELAXATION[1.5]["grey"]
        >>> echo = gradient_echo(tissue, tr_ms=500, te_ms=5, flip_degrees=90)
        >>> abs(echo - spin_echo(tissue, tr_ms=500, te_ms=5)) < 1e-12
        True
    """
    recovery, flip = np.exp(-tr_ms / tissue.t1_ms), np.radians(flip_degrees)
    steady = np.sin(flip) * (1 - recovery) / (1 - np.cos(flip) * recovery)
    return float(tissue.density * steady * np.exp(-te_ms / tissue.t2_ms))


def inversion_recovery(tissue: Tissue, *, tr_ms: float, ti_ms: float, te_ms: float) -> float:
    """Magnitude of an inversion recovery spin echo: `density · |1 - 2 exp(-TI/T1) + exp(-TR/T1)| · exp(-TE/T2)`.

    Source: Haacke et al., Magnetic Resonance Imaging, 1999, chapter 8. TI = T1 · ln 2 nulls a tissue when TR is long.

    Example:
        >>> fluid = RELAXATION[1.5]["csf"]
        >>> round(inversion_recovery(fluid, tr_ms=1e6, ti_ms=fluid.t1_ms * 0.693147, te_ms=0), 5)
        0.0
    """
    longitudinal = 1 - 2 * np.exp(-ti_ms / tissue.t1_ms) + np.exp(-tr_ms / tissue.t1_ms)
    return float(tissue.density * abs(longitudinal) * np.exp(-te_ms / tissue.t2_ms))


def mr_image(fractions: Mapping[str, Array], signal: Callable[[Tissue], float], *, tesla: float = 1.5) -> Array:
    """Returns the image `(X, Y, Z)` of tissue fractions under a signal equation; pure water at equilibrium is 1.

    Example:
        >>> maps = {"csf": np.ones((1, 1, 1), dtype=np.float32)}
        >>> mr_image(maps, lambda tissue: spin_echo(tissue, tr_ms=1e6, te_ms=0)).item()
        1.0
    """
    tissues = RELAXATION[tesla]
    parts = [np.float32(signal(tissues[name])) * fraction for name, fraction in fractions.items()]
    return np.asarray(sum(parts), dtype=np.float32)


def t1_weighted(fractions: Mapping[str, Array], *, tesla: float = 1.5) -> Array:
    """Returns a T1-weighted spoiled gradient echo (TR 18 ms, TE 5 ms, 30 degrees), in a hospital's hundreds."""

    def signal(tissue: Tissue) -> float:
        return 3000 * gradient_echo(tissue, tr_ms=18, te_ms=5, flip_degrees=30)

    return mr_image(fractions, signal, tesla=tesla)


def t2_weighted(fractions: Mapping[str, Array], *, tesla: float = 1.5) -> Array:
    """Returns a T2-weighted spin echo (TR 4000 ms, TE 100 ms), in a hospital's hundreds."""

    def signal(tissue: Tissue) -> float:
        return 1500 * spin_echo(tissue, tr_ms=4000, te_ms=100)

    return mr_image(fractions, signal, tesla=tesla)


def ct_image(fractions: Mapping[str, Array]) -> Array:
    """Returns the CT image of tissue fractions, air where they do not add up to 1 `[HU]`."""
    tissues = RELAXATION[1.5]
    excess = sum(np.float32(tissues[name].hu - AIR_HU) * part for name, part in fractions.items())
    return np.asarray(excess + np.float32(AIR_HU), dtype=np.float32)


def receive_field(grid: Grid, *, strength: float = 0.2, seed: int = 0) -> Array:
    """Returns a smooth positive factor `(X, Y, Z)` around 1 that shades an image as surface coils do.

    Args:
        grid: where to sample it; a function of the position in millimetres, so that it is the same on every grid.
        strength: standard deviation of its logarithm.
        seed: chooses its shape.
    """
    rng = np.random.default_rng(seed)
    indices = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in grid.shape], indexing="ij"))
    field = np.zeros(grid.shape, dtype=np.float32)
    for _ in range(6):
        direction = rng.normal(size=3)
        wave = 2 * np.pi / rng.uniform(200, 400) * direction / np.linalg.norm(direction)
        along = (wave @ grid.affine[:3, :3]).astype(np.float32)
        phase = np.float32(wave @ grid.affine[:3, 3] + rng.uniform(0, 2 * np.pi))
        field += np.cos(np.tensordot(along, indices, axes=1) + phase)
    return np.asarray(np.exp(strength * field * np.float32(np.sqrt(2 / 6))))


def add_rician_noise(image: Array, sigma: float, rng: np.random.Generator) -> Array:
    """Returns the magnitude of an image after complex Gaussian noise of standard deviation `sigma` in both channels.

    Source: Gudbjartsson and Patz, Magn Reson Med 34:910, 1995.
    """
    real = image + rng.normal(0, sigma, image.shape).astype(np.float32)
    return np.hypot(real, rng.normal(0, sigma, image.shape).astype(np.float32))
