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
# So much of a CT is air, far below the lowest value that an MR image ever has.
_AIR_HU = -500.0
_AIR_SHARE = 0.01
_OUTLIER = 4.0  # numbers further from the mean than so many standard deviations count as that many


@dataclass(frozen=True)
class InputVerdict:
    """What an `InputCheck` noticed.

    Attributes:
        flags: empty when the image looks like what the bundle was made for.
        scores: what they rest on: the likeness to every contrast known, adding up to 1, sizes and spacings `[mm]`.
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
            self.accepted = str(content["accepted"])
            self.threshold = float(content["threshold"])
            self.spacing_mm = _pair(content["spacing_mm"])
            self.size = {name: _pair(limits) for name, limits in content["size"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{path.name}: expected the input reference of a bundle, got {type(error).__name__} {error}; "
                "make it with `python -m medgen.infer.trust_fit`"
            ) from error

    def __call__(self, image: MetaTensor) -> InputVerdict:
        """Returns the verdict on an image `(1, X, Y, Z)` as read, before any preprocessing."""
        volume = np.asarray(image[0].numpy(), dtype=np.float32)
        spacing = spacing_mm(np.asarray(image.affine, dtype=np.float64))
        view = view_of(volume, np.asarray(image.affine, dtype=np.float64))
        size, numbers = size_of(view), appearance(view)
        likeness = self.likeness(numbers) if numbers else {}
        modality = str(image.meta.get("modality") or "MR")
        noticed = {
            MODALITY_FLAG: modality != "MR" or float((volume < _AIR_HU).mean()) > _AIR_SHARE,
            RESOLUTION_FLAG: not self._within(self.spacing_mm, float(spacing.min()), float(spacing.max())),
            BODY_PART_FLAG: not all(self._within(limits, size[name]) for name, limits in self.size.items()),
            CONTRAST_FLAG: likeness.get(self.accepted, 0.0) < self.threshold,
        }
        measured = {"finest_mm": float(spacing.min()), "coarsest_mm": float(spacing.max()), **size}
        scores = {**{f"like_{name}": value for name, value in likeness.items()}, **measured}
        return InputVerdict(
            tuple(flag for flag, true in noticed.items() if true), {k: round(v, 4) for k, v in scores.items()}
        )

    @staticmethod
    def _within(limits: tuple[float, float], *values: float) -> bool:
        return all(limits[0] <= value <= limits[1] for value in values)


def likeness_from(content: Mapping[str, Any]) -> Likeness:
    """Returns the discriminant that `likeness_to_json` wrote.

    Raises:
        ValueError: the numbers do not fit together.
    """
    arrays = {key: np.array(content[key], dtype=np.float64) for key in ("mean", "scale", "weights", "offsets")}
    names, classes = tuple(content["names"]), tuple(content["classes"])
    shapes = {
        "mean": (len(names),),
        "scale": (len(names),),
        "weights": (len(classes), len(names)),
        "offsets": (len(classes),),
    }
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise ValueError(f"{key} has shape {arrays[key].shape}, expected {shape}")
    return Likeness(names, arrays["mean"], arrays["scale"], classes, arrays["weights"], arrays["offsets"])


def likeness_to_json(likeness: Likeness) -> dict[str, Any]:
    """Returns the discriminant as plain JSON types."""
    arrays = {key: np.round(getattr(likeness, key), 6).tolist() for key in ("mean", "scale", "weights", "offsets")}
    return {"names": list(likeness.names), "classes": list(likeness.classes), **arrays}


def _pair(limits: Any) -> tuple[float, float]:  # noqa: ANN401 - JSON
    low, high = limits
    return float(low), float(high)
