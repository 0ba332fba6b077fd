"""Is this a CT of the part of the body that a bundle was measured on? Told from the slices, not from a header."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from scipy.ndimage import binary_fill_holes, binary_opening, label

from medgen.geometry import orientation_codes, spacing_mm
from medgen.infer.appearance import VIEW_MM, view_of
from medgen.infer.trust import MODALITY_FLAG, RESOLUTION_FLAG, InputVerdict

NOT_VALIDATED_FLAG = "not-validated"
REGIONS = ("abdomen", "chest", "head")
# HU
_BODY, _LUNG, _BONE = -300.0, (-950.0, -600.0), 250.0
# An image without anything below it has no air and is no CT; what a header calls one may be cut from within a body, but
# without fat it is not in HU.
_COLDEST_TISSUE, _COLDEST_INSIDE = -500.0, -50.0
# Slices of a chest are a fifth lung and more; of an abdomen only those at the dome of the diaphragm are.
_CHEST_LUNG, _CHEST_SHARE = 0.15, 0.35
_HEAD_WIDTH_MM, _HEAD_DEPTH_MM, _HEAD_BONE = 230.0, 270.0, 0.08


class CtCheck:
    """Flags an image that is no CT in HU, is sampled too coarsely, or shows a part of the body not measured on.

    Args:
        validated: of `REGIONS`; the others are flagged `not-validated`.
        pixel_mm: least and most side of a pixel in an axial slice `[mm]`. Thick coronal slices are none.
    """

    def __init__(self, validated: Sequence[str] = ("abdomen",), pixel_mm: tuple[float, float] = (0.3, 1.2)) -> None:
        self.validated = tuple(validated)
        self.pixel_mm = pixel_mm

    def __call__(self, image: MetaTensor) -> InputVerdict:
        """Returns the verdict on an image `(1, X, Y, Z)` as read, before any preprocessing."""
        volume = np.asarray(image[0].numpy(), dtype=np.float32)
        affine = np.asarray(image.affine, dtype=np.float64)
        in_plane = [code not in "SI" for code in orientation_codes(affine)]
        side = float(spacing_mm(affine)[in_plane].max())
        measures = body_measures(view_of(volume, affine, whole=True).image)
        region = region_of(measures)
        stated = str(image.meta.get("modality") or "")
        airless = float(volume.min()) > (_COLDEST_INSIDE if stated == "CT" else _COLDEST_TISSUE)
        partly = measures["chest_share"] > _CHEST_SHARE and "chest" not in self.validated
        noticed = {
            MODALITY_FLAG: airless or stated not in {"", "CT"},
            RESOLUTION_FLAG: not self.pixel_mm[0] <= side <= self.pixel_mm[1],
            NOT_VALIDATED_FLAG: partly or region not in self.validated,
        }
        scores = {"pixel_mm": side, **measures, **{f"is_{name}": float(name == region) for name in REGIONS}}
        return InputVerdict(
            tuple(flag for flag, true in noticed.items() if true), {k: round(v, 4) for k, v in scores.items()}
        )


def region_of(measures: dict[str, float]) -> str:
    """Returns the one of `REGIONS` that a body's measures speak for, `""` where there is no body."""
    if not measures["area_cm2"]:
        return ""
    small = measures["width_mm"] < _HEAD_WIDTH_MM and measures["depth_mm"] < _HEAD_DEPTH_MM
    if small and measures["bone"] > _HEAD_BONE:
        return "head"
    return "chest" if measures["lung"] > _CHEST_LUNG else "abdomen"


def body_measures(view: npt.NDArray[np.float32]) -> dict[str, float]:
    """Measures the body in the slices of a view `(X, Y, Z)` of `VIEW_MM` voxels `[HU]`, RAS: the median slice counts.

    Returns:
        `width_mm` and `depth_mm` of the largest slice, `area_cm2`, the shares of `lung` and `bone` in it, and
        `chest_share`, that of the slices that are of a chest.
    """
    rows = [row for z in range(view.shape[2]) if (row := _measured(view[..., z]))]
    if not rows:
        return dict.fromkeys(("width_mm", "depth_mm", "area_cm2", "lung", "bone", "chest_share"), 0.0)
    columns = np.array(rows)
    width, depth = columns[:, :2].max(axis=0)
    area, lung, bone = np.median(columns[:, 2:], axis=0)
    chest = float((columns[:, 3] > _CHEST_LUNG).mean())
    return {"width_mm": width, "depth_mm": depth, "area_cm2": area, "lung": lung, "bone": bone, "chest_share": chest}


def _measured(plane: npt.NDArray[np.float32]) -> tuple[float, float, float, float, float] | None:
    pieces, count = label(binary_opening(plane > _BODY))
    if not count:
        return None
    body = binary_fill_holes(pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:])))
    inside = plane[body]
    width, depth = (VIEW_MM * float(np.ptp(np.flatnonzero(body.any(axis=axis))) + 1) for axis in (1, 0))
    lung = float(((inside > _LUNG[0]) & (inside < _LUNG[1])).mean())
    return width, depth, body.sum() * VIEW_MM**2 / 100, lung, float((inside > _BONE).mean())
