"""Is this input what the bundle was made for? A verdict in flags, from the image itself and not from its name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor

from medgen.errors import BundleError
from medgen.geometry import spacing_mm
from medgen.infer.appearance import appearance, size_of, view_of

Array = npt.NDArray[np.float64]

SCHEMA = "medgen-input-reference-1"
CONTRAST_FLAG = "input-contrast"
BODY_PART_FLAG = "input-body-part"
RESOLUTION_FLAG = "input-resolution"
MODALITY_FLAG = "input-modality"
UNFAMILIAR_FLAG = "input-unfamiliar"
# So much of a CT is air, far below the lowest value that an MR image ever has.
_AIR_HU = -500.0
_AIR_SHARE = 0.01
_OUTLIER = 4.0  # numbers further from the mean than so many standard deviations count as that many


@dataclass(frozen=True)
class InputVerdict:
    """What an `InputCheck` noticed.

    Attributes:
        flags: empty when the image looks like what the bundle was made for.
        scores: what they rest on: the likeness to every contrast known, adding up to 1; the distance from the accepted
            one, about 1 for its own; sizes and spacings `[mm]`.
    """

    flags: tuple[str, ...]
    scores: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Likeness:
    """A linear discriminant: how like the contrasts it knows an appearance is.

    Attributes:
        names: of the numbers it looks at.
        mean: of each number, to standardise it.
        scale: likewise its standard deviation.
        classes: contrasts.
        weights: `(classes, numbers)`.
        offsets: `(classes,)`.
    """

    names: tuple[str, ...]
    mean: Array
    scale: Array
    classes: tuple[str, ...]
    weights: Array
    offsets: Array

    def __call__(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Returns the likeness to each contrast; all add up to 1."""
        values = np.array([numbers[name] for name in self.names])
        scores = self.weights @ np.clip((values - self.mean) / self.scale, -_OUTLIER, _OUTLIER) + self.offsets
        powers = np.exp(scores - scores.max())
        return dict(zip(self.classes, (powers / powers.sum()).tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Distance:
    """How far an appearance is from those of the accepted contrast, in standard deviations, root mean square.

    Attributes:
        names: of the numbers it looks at.
        mean: of each number.
        scale: standard deviation of each number.
        precision: inverse of their correlation, `(numbers, numbers)`.
    """

    names: tuple[str, ...]
    mean: Array
    scale: Array
    precision: Array

    def __call__(self, numbers: Mapping[str, float]) -> float:
        """Returns the Mahalanobis distance over the square root of how many numbers there are."""
        away = (np.array([numbers[name] for name in self.names]) - self.mean) / self.scale
        return float(np.sqrt(away @ self.precision @ away / len(away)))


class InputCheck:
    """Flags an image that differs from what a bundle was trained on, in contrast, body part, resolution or modality.

    Args:
        reference: path of the JSON that `python -m medgen.infer.trust_fit` wrote for the bundle.

    Raises:
        BundleError: the file is missing or of another form.
    """

    def __init__(self, reference: str) -> None:
        path = Path(reference)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise BundleError(f"{path.name}: expected schema {SCHEMA}, got {content['schema']}")
            self.likeness = likeness_from(content["likeness"])
            self.distance = distance_from(content["distance"])
            self.accepted = str(content["accepted"])
            self.least_likeness = float(content["least_likeness"])
            self.most_distance = float(content["most_distance"])
            self.spacing_mm = _pair(content["spacing_mm"])
            self.size = {name: _pair(limits) for name, limits in content["size"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{path.name}: expected the input reference of a bundle, got {type(error).__name__} {error}; "
                "make it with `python -m medgen.infer.trust_fit`"
            ) from error

    def __call__(self, image: MetaTensor) -> InputVerdict:
        """Returns the verdict on an image `(1, X, Y, Z)` as read, before any preprocessing."""
        volume = np.asarray(image[0].numpy(), dtype=np.float32)
        spacing = spacing_mm(np.asarray(image.affine, dtype=np.float64))
        view = view_of(volume, np.asarray(image.affine, dtype=np.float64))
        size = size_of(view)
        fits = all(self._within(limits, size[name]) for name, limits in self.size.items())
        numbers = appearance(view) if fits else {}  # another body part has no contrast to judge
        likeness = self.likeness(numbers) if numbers else {}
        learnt = {"distance": self.distance(numbers)} if numbers else {}
        modality = str(image.meta.get("modality") or "MR")
        noticed = {
            MODALITY_FLAG: modality != "MR" or float((volume < _AIR_HU).mean()) > _AIR_SHARE,
            RESOLUTION_FLAG: not self._within(self.spacing_mm, float(spacing.min()), float(spacing.max())),
            BODY_PART_FLAG: not fits,
            CONTRAST_FLAG: likeness.get(self.accepted, 1.0) < self.least_likeness,
            UNFAMILIAR_FLAG: learnt.get("distance", 0.0) > self.most_distance,
        }
        spacings = {"finest_mm": float(spacing.min()), "coarsest_mm": float(spacing.max())}
        scores = {**{f"like_{name}": value for name, value in likeness.items()}, **learnt, **spacings, **size}
        return InputVerdict(
            tuple(flag for flag, true in noticed.items() if true), {k: round(v, 4) for k, v in scores.items()}
        )

    @staticmethod
    def _within(limits: tuple[float, float], *values: float) -> bool:
        return all(limits[0] <= value <= limits[1] for value in values)


def likeness_from(content: Mapping[str, Any]) -> Likeness:
    """Returns the discriminant that `to_json` wrote.

    Raises:
        ValueError: the numbers do not fit together.
    """
    names, classes = tuple(content["names"]), tuple(content["classes"])
    n, k = len(names), len(classes)
    arrays = _arrays(content, {"mean": (n,), "scale": (n,), "weights": (k, n), "offsets": (k,)})
    return Likeness(names, arrays["mean"], arrays["scale"], classes, arrays["weights"], arrays["offsets"])


def distance_from(content: Mapping[str, Any]) -> Distance:
    """Returns the distance that `to_json` wrote.

    Raises:
        ValueError: the numbers do not fit together.
    """
    names = tuple(content["names"])
    n = len(names)
    arrays = _arrays(content, {"mean": (n,), "scale": (n,), "precision": (n, n)})
    return Distance(names, arrays["mean"], arrays["scale"], arrays["precision"])


def to_json(learnt: Likeness | Distance) -> dict[str, Any]:
    """Returns what was learnt as plain JSON types."""
    return {
        key: np.round(value, 6).tolist() if isinstance(value, np.ndarray) else list(value)
        for key, value in vars(learnt).items()
    }


def _arrays(content: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    arrays = {key: np.array(content[key], dtype=np.float64) for key in shapes}
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise ValueError(f"{key} has shape {arrays[key].shape}, expected {shape}")
    return arrays


def _pair(limits: Any) -> tuple[float, float]:  # noqa: ANN401 - JSON
    low, high = limits
    return float(low), float(high)
