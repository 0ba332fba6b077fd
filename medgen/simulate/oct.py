"""B-scans of the retina by formula, as optical coherence tomography shows its layers, with known surfaces and lesions.

Light scattered back is a layer's brightness times speckle (gamma, as an average of scans has) plus noise of the
detector; what is shown is its fourth root, as in the exports of the Spectralis (Heidelberg Engineering), 8 bits.
Shadows of vessels, the vitreous, the choroid and the white wedges of straightened exports are drawn as seen in them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from medgen.errors import GeometryError
from medgen.simulate.head import smooth_noise
from medgen.simulate.retina import LAYERS, Lesion, Retina, add_lesion, healthy_retina

Array = npt.NDArray[np.float32]

_WHITE = 255.0
_SMALLEST = (32, 200)
_ROOT = 0.25
# Measured on 15 normal B-scans of Kermany et al. 2018, in grey values. Within a layer the standard deviation is 0.12 of
# the mean, with the longer tail to the bright side; neighbours correlate by 0.84 laterally and 0.81 axially. That is
# speckle of some twelve averaged scans, and tissue that differs from place to place. Above the retina lie 26 +- 11, of
# it 2.5% at 0, neighbours correlated by 0.57 and 0.70; far below it 12 +- 5. Behind Bruch's membrane the mean falls
# from 95 to 56 within 26 pixels, to 35 within 56 and to 23 within 96.
_LOOKS = 12.0
_TEXTURE = 0.095
_NOISE_GREY = 29.0
_NOISE_SHAPE = (0.65, 1.1)
_NOISE_FLOOR = 0.01
_DEEP = 0.44
_CYST_GREY = 12.0


@dataclass(frozen=True, eq=False)
class BScan:
    """One B-scan and what is true of it.

    Attributes:
        image: `(X, Y)`: lateral, and depth from the vitreous down; whole grey values from 0 to 255.
        ilm: `(X,)` inner limiting membrane [pixels from the top], where a lesion has lifted it.
        rpe: `(X,)` Bruch's membrane, the base of the retinal pigment epithelium as it would be without a lesion.
        lesion: `(X, Y)` deposits and what they raise, or fluid; what they merely push aside is not in it.
        seen: `(X, Y)` False in white wedges and borders.
    """

    image: Array
    ilm: Array
    rpe: Array
    lesion: npt.NDArray[np.bool_]
    seen: npt.NDArray[np.bool_]


def simulate_bscan(seed: int, shape: tuple[int, int] = (512, 496), lesion: Lesion = "", wedges: bool = True) -> BScan:
    """Returns a B-scan of a person; another seed is another person, place, scanner's gain and noise.

    With and without a lesion or wedges, the same seed is the same person in the same noise.

    Args:
        seed: of everything.
        shape: columns 11.5 um and rows 3.87 um apart, whatever their number: fewer show less of the retina.
        lesion: `"drusen"`, `"fluid"`, `"neovascular"`, or none.
        wedges: whether white may lie where the straightened scan does not reach.

    Raises:
        GeometryError: the retina does not fit into so few columns or rows.
        IntensityError: another lesion.
    """
    if any(n < least for n, least in zip(shape, _SMALLEST, strict=True)):
        raise GeometryError(f"expected a B-scan of at least {_SMALLEST[0]} x {_SMALLEST[1]} pixels, got {shape}")
    person, disease, scanner, frame = (np.random.default_rng([seed, part]) for part in range(4))
    retina = healthy_retina(shape, person)
    healthy_ilm = retina.edges()[0]
    add_lesion(retina, lesion, disease)
    edges = retina.edges()
    cysts = retina.cyst_cover(shape[1])
    grey = _retina_grey(retina, edges, cysts, person)
    image = _as_seen(grey, edges, healthy_ilm, scanner)
    seen = _seen(shape, frame) if wedges else np.ones(shape, np.bool_)
    image = np.where(seen, np.clip(np.rint(image), 0, _WHITE - 1), _WHITE)
    truth = _lesion_mask(retina, edges, cysts) & seen
    return BScan(image.astype(np.float32), np.maximum(edges[0], 0), retina.bruch.copy(), truth, seen)


def _retina_grey(retina: Retina, edges: Array, cysts: Array, rng: np.random.Generator) -> Array:
    """Mean grey values without noise: layers with blurred borders, cysts, the choroid, reflexes and vessels."""
    shape = cysts.shape
    rows = np.arange(shape[1], dtype=np.float32)
    grey = np.zeros(shape, np.float32)
    before = np.zeros((shape[0], 1), np.float32)
    # Person's draws come first and in equal number, so that a lesion leaves the rest as it was.
    choroid = _choroid(retina.bruch, shape, rng)
    texture = 1 + 0.05 * smooth_noise((*shape, 1), 9, rng)[..., 0]
    for level, edge in zip(retina.grey[..., None], edges[:-1, :, None], strict=True):
        grey += np.clip(rows - edge + 0.5, 0, 1) * (level - before)
        before = level
    grey *= texture
    below = np.clip(rows - edges[-1][:, None] + 0.5, 0, 1)
    grey += below * (choroid - grey)
    grey += cysts * (_CYST_GREY - grey)
    _add_reflex(grey, edges[0], rng)
    return _with_vessels(gaussian_filter1d(grey, 0.8, axis=1), edges, rng)


def _choroid(bruch: Array, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Bright stroma around dark vessels, small ones first, fading into the sclera."""
    depth = np.maximum(np.arange(shape[1], dtype=np.float32) - bruch[:, None], 0)
    thick = rng.uniform(35, 85)
    small, large = (smooth_noise((*shape, 1), length, rng)[..., 0] for length in (6, 20))
    within = 1 / (1 + np.exp(np.clip((depth - thick) / 8, -30, 30)))
    granules = np.exp(within * 0.13 * np.clip(depth / 5, 0, 1) * small)
    lumens = 1 - 0.33 * within * np.clip((depth - 8) / 15, 0, 1) / (1 + np.exp(-6 * (large - 0.5)))
    fading = 114 * (0.2 * np.exp(-depth / 8) + 0.8 * np.exp(-depth / rng.uniform(42, 58)))
    return np.asarray(np.exp(rng.normal(0, 0.06)) * granules * lumens * fading, dtype=np.float32)


def _add_reflex(grey: Array, ilm: Array, rng: np.random.Generator) -> None:
    """A thin bright line where the inner limiting membrane lies level, as it mirrors light back."""
    strength, width, axis = rng.uniform(10, 90), rng.uniform(0.03, 0.12), rng.normal(0, 0.05)
    uneven = np.clip(0.6 + 0.6 * smooth_noise((ilm.size, 1, 1), 20, rng)[:, 0, 0], 0, None)
    level = np.exp(-(((np.gradient(gaussian_filter1d(ilm, 3)) - axis) / width) ** 2)) * uneven
    rows = np.arange(grey.shape[1], dtype=np.float32)
    grey += (strength * level)[:, None] * np.exp(-(((rows - ilm[:, None] - 1.5) / 1.5) ** 2))


def _with_vessels(grey: Array, edges: Array, rng: np.random.Generator) -> Array:
    """Retinal vessels cut across: a bright spot among the ganglion cells, and its shadow on all that is deeper."""
    columns, rows = (np.arange(n, dtype=np.float32) for n in grey.shape)
    for _ in range(int(rng.integers(2, 9))):
        place, half, dark = rng.uniform(0, columns.size), rng.uniform(1, 4), rng.uniform(0.03, 0.22)
        column = int(place)
        middle = edges[0, column] + 0.3 * (edges[3, column] - edges[0, column]) + 2
        across = np.exp(-(((columns - place) / half) ** 2))[:, None]
        shadow = np.clip((rows - middle - half) / 4, 0, 1)
        spot = np.exp(-(((rows - middle) / (1.2 * half)) ** 2))
        grey = grey * (1 + across * (rng.uniform(0.1, 0.5) * spot - dark * shadow))
    return np.asarray(grey, dtype=np.float32)


def _as_seen(grey: Array, edges: Array, healthy_ilm: Array, rng: np.random.Generator) -> Array:
    """Grey values with speckle, noise and the scanner's gain; may exceed 255."""
    columns, rows = (np.arange(n, dtype=np.float32) for n in grey.shape)
    noise_grey = _NOISE_GREY * np.exp(rng.normal(0, 0.2))
    gain = np.exp(rng.normal(0, 0.12)) * (1 + 0.05 * smooth_noise((columns.size, 1, 1), 90, rng)[:, 0, 0])
    gain *= 1 + 0.012 * gaussian_filter1d(rng.normal(size=columns.size), 0.7)
    # Sensitivity falls with depth: noise is darker below the retina than above it.
    fall = np.clip((rows - edges[-1][:, None] + 100) / 300, 0, 1)
    floor = noise_grey * (1 - (1 - _DEEP) * fall)
    hyaloid, cloud = _vitreous(healthy_ilm, grey.shape, rng)
    hyaloid *= rows < edges[0][:, None]
    texture = 0.8 * _correlated(grey.shape, (0.9, 0.9), rng) + 0.6 * _correlated(grey.shape, (5.0, 1.5), rng)
    solid = np.maximum(grey, hyaloid) * np.exp(_TEXTURE * texture)
    scattered = (solid / _WHITE) ** 4 * _gamma(_correlated(grey.shape, (0.8, 1.2), rng), _LOOKS)
    noise = (floor * cloud / _WHITE) ** 4 * (
        _gamma(_correlated(grey.shape, (0.66, 0.85), rng), rng.uniform(*_NOISE_SHAPE)) - _NOISE_FLOOR
    )
    shown = np.maximum(scattered + noise, 0) ** _ROOT
    return np.asarray(_WHITE * gain[:, None] * shown, dtype=np.float32)


def _vitreous(ilm: Array, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    """Grey values of a detached hyaloid, and what the noise is multiplied by where gel is cloudy above fluid."""
    columns, rows = (np.arange(n, dtype=np.float32) for n in shape)
    attached = rng.uniform(-0.3, 1.3) * columns.size
    away = np.abs(columns - attached)
    rise = rng.uniform(15, 60) * (1 - np.exp(-away / rng.uniform(60, 250)))
    membrane = gaussian_filter1d(0.3 * ilm.min() + 0.7 * ilm, 25, mode="nearest") - rise
    line = rng.uniform(30, 70) * np.exp(-(((rows - membrane[:, None]) / rng.uniform(1.2, 2.2)) ** 2))
    line *= rng.uniform() < 0.25
    ends = ilm.min() * rng.uniform(0.4, 1.0) + 8 * smooth_noise((columns.size, 1, 1), 60, rng)[:, 0, 0]
    above = 1 / (1 + np.exp(np.clip((rows - ends[:, None]) / 6, -30, 30)))
    cloud = 1 + (rng.uniform() < 0.3) * rng.uniform(0.1, 0.5) * above
    return np.asarray(line, dtype=np.float32), np.asarray(cloud, dtype=np.float32)


def _correlated(shape: tuple[int, int], lengths: tuple[float, float], rng: np.random.Generator) -> Array:
    """Normal numbers of unit variance, correlated over so many columns and rows."""
    field = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), lengths, truncate=3)
    return np.asarray(field / field.std(), dtype=np.float32)


def _gamma(normal: Array, shape: float) -> Array:
    """Turns normal numbers into ones of mean 1 with nearly a gamma distribution (Wilson and Hilferty 1931)."""
    root = 1 - 1 / (9 * shape) + normal / np.float32(3 * np.sqrt(shape))
    return np.asarray(np.maximum(root, 0) ** 3, dtype=np.float32)


def _seen(shape: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Where a scan reaches that was shifted, sheared and turned a little to lie straight in its frame."""
    columns, rows = np.arange(shape[0])[:, None], np.arange(shape[1])
    shift = rng.normal(0, 14) * (rng.uniform() < 0.8)
    top = shift + rng.normal(0, 0.035) * (columns - shape[0] / 2)
    left, right = rng.uniform(0, 2.5), shape[0] - rng.uniform(0, 2.5)
    lean = rng.normal(0, 0.004) * (rows - shape[1] / 2)
    return np.asarray(
        (rows >= top) & (rows < top + shape[1]) & (columns >= left + lean) & (columns < right + lean), dtype=np.bool_
    )


def _lesion_mask(retina: Retina, edges: Array, cysts: Array) -> npt.NDArray[np.bool_]:
    """Cysts; and from the ellipsoid zone to Bruch's membrane where a deposit or fluid raises it by a pixel or more."""
    rows = np.arange(cysts.shape[1])
    raised = (retina.thickness[LAYERS.index("deposit")] + retina.thickness[LAYERS.index("fluid below")]) >= 1
    top = edges[LAYERS.index("ellipsoid zone")][:, None]
    return np.asarray(
        (cysts > 0.5) | (raised[:, None] & (rows >= top) & (rows < retina.bruch[:, None])), dtype=np.bool_
    )
