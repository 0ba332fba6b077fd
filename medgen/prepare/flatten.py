"""B-scans flattened along Bruch's membrane, cut off between vitreous and choroid, and evened out; and the way back."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.transforms.inverse import InvertibleTransform
from scipy import ndimage

from medgen.errors import GeometryError, IntensityError
from medgen.prepare.retina import AXIAL_UM, Line, Mask, Plane, Retina, find_retina

RETINA_KEY = "retina"
LEFT_OUT_FLAG = "bscans-left-out"
# Of a Heidelberg Spectralis: 30 degrees are some 8.9 mm in 768 A-scans or, at high resolution, in 1536; 496 pixels of
# depth are 1.92 mm.
_DEPTH_UM = 1920.0
_NORMAL_LATERAL_UM, _HIGH_LATERAL_UM, _HIGH_WIDTH = 11.5, 5.75, 1000
_NO_OCT_UM = 200.0  # a pixel so large is one of unknown size, which readers call 1 mm
_BRIGHT = 97  # percentile of the retina that becomes 1
_CEILING = 1.25
_SCALE = 1.6  # 0..1.25 becomes -1..1


def assumed_spacing_um(shape: Sequence[int]) -> tuple[float, float]:
    """Returns (lateral, axial) spacing of a B-scan `(X, Y)` of which nothing is known, as a Spectralis exports it.

    Example:
        >>> [round(um, 2) for um in assumed_spacing_um((512, 496))]
        [11.5, 3.87]
    """
    return (_HIGH_LATERAL_UM if shape[0] >= _HIGH_WIDTH else _NORMAL_LATERAL_UM), _DEPTH_UM / shape[1]


def unit_from_grey(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scales vitreous 0 and bright band 1 to what the networks see, -1 to 1."""
    return np.asarray(np.clip(grey, 0, _CEILING) * _SCALE - 1, dtype=np.float32)


class FlattenRetinad(MapTransform, InvertibleTransform):  # type: ignore[misc]  # MONAI is untyped
    """Cuts the retina out of B-scans as a flat band, in which Bruch's membrane is one row.

    Values become -1 for the vitreous' grey and below, up to 1; all above the inner limiting membrane is -1, so that a
    detached hyaloid is nothing abnormal. What was not seen (wedges) is filled from the nearest A-scan that was, and is
    not in the mask. A B-scan of a volume that shows no retina (a blink) is left out: its mask is empty, and the mask is
    flagged `bscans-left-out`.

    Adds a mask `retina` `(1, X', rows, Z)` of what is scored: from `surface_um` below the inner limiting membrane,
    whose reflexes come and go with the angle of the light, to `choroid_um` below Bruch's membrane. `inverse` lays a map
    on the flat band back on the B-scan, 0 elsewhere.

    Args:
        keys: B-scans `(1, X, Y, Z)`: lateral, depth from the vitreous down, B-scan.
        rows: of the band.
        row_um: height of one.
        column_um: width of a column.
        below_um: how much of the band lies below Bruch's membrane.
        choroid_um: how much of that is scored.
        surface_um: how much below the inner limiting membrane is not.
        lateral_um: spacing of pictures that do not state theirs; 0 takes `assumed_spacing_um`.
        axial_um: the same in depth.

    Raises:
        IntensityError: no B-scan shows a retina.
        GeometryError: a band is narrower than `least_columns`.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the geometry of a band, in the user's units
        self,
        keys: str,
        rows: int = 64,
        row_um: float = 8.7,
        column_um: float = 23.0,
        below_um: float = 96.0,
        choroid_um: float = 18.0,
        surface_um: float = 26.0,
        lateral_um: float = 0.0,
        axial_um: float = 0.0,
        least_columns: int = 64,
    ) -> None:
        super().__init__(keys)
        self.rows, self.row_um, self.column_um = rows, row_um, column_um
        self.below, self.choroid, self.surface = below_um / row_um, choroid_um / row_um, surface_um / row_um
        self.lateral_um, self.axial_um, self.least_columns = lateral_um, axial_um, least_columns

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Flattens every B-scan."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: MetaTensor = result[key]
            lateral, axial = self._spacing_um(image)
            columns = int(image.shape[1] * lateral // self.column_um)
            if columns < self.least_columns:
                raise GeometryError(
                    f"expected a B-scan of at least {self.least_columns * self.column_um / 1000:.1f} mm, got "
                    f"{image.shape[1]} A-scans at {lateral:g} um; of a picture --set lateral_um=... says what they are"
                )
            planes = np.asarray(image.as_tensor()[0].cpu().numpy(), dtype=np.float32)
            found = _found(planes, axial, lateral)
            bands = [
                self._band(planes[..., z], one, (lateral, axial)) if one else self._nothing(columns)
                for z, one in enumerate(found)
            ]
            flat = torch.from_numpy(np.stack([band for band, _ in bands], axis=-1)[None])
            flags = "" if all(found) else LEFT_OUT_FLAG
            tissue = MetaTensor(
                torch.from_numpy(np.stack([mask for _, mask in bands], axis=-1)[None].astype(np.float32)),
                meta={"medgen_flags": flags},
            )
            nowhere = np.zeros(image.shape[1])
            extra = {
                "bruch": torch.from_numpy(np.stack([one.bruch if one else nowhere for one in found], axis=-1)),
                "shape": torch.tensor(image.shape[1:]),
                "affine": image.affine.clone(),
                "spacing_um": torch.tensor([lateral, axial]),
                "column_um": self.column_um,
                "row_um": self.row_um,
                "bruch_row": self.rows - self.below,
            }
            made = MetaTensor(flat, meta=dict(image.meta), applied_operations=image.applied_operations)
            self.push_transform(made, orig_size=tuple(image.shape[1:]), extra_info=extra)
            result[key], result[RETINA_KEY] = made, tissue
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Lays maps on the flat band back on their B-scans."""
        result = dict(data)
        for key in self.key_iterator(result):
            band: MetaTensor = result[key]
            extra = self.pop_transform(band)["extra_info"]
            spacing = [float(um) for um in extra["spacing_um"]]
            shape = [int(n) for n in extra["shape"]]
            bruch = np.asarray(extra["bruch"])
            planes = np.asarray(band.as_tensor().cpu().numpy(), dtype=np.float32)
            laid = [
                np.stack([self._laid(channel[..., z], bruch[:, z], shape, spacing) for z in range(shape[2])], axis=-1)
                for channel in planes
            ]
            meta = {**band.meta, "affine": extra["affine"]}
            back = torch.from_numpy(np.stack(laid))
            result[key] = MetaTensor(back, meta=meta, applied_operations=band.applied_operations)
        return result

    def _spacing_um(self, image: MetaTensor) -> tuple[float, float]:
        """Returns (lateral, axial): what the image states, else what the user does, else what is assumed."""
        sides = 1000 * np.linalg.norm(np.asarray(image.affine, dtype=np.float64)[:3, :2], axis=0)
        if max(sides) >= _NO_OCT_UM:
            lateral, axial = assumed_spacing_um(image.shape[1:3])
            return self.lateral_um or lateral, self.axial_um or axial
        return float(sides[0]), float(sides[1])

    def _band(self, image: Plane, retina: Retina, spacing: tuple[float, float]) -> tuple[Plane, Mask]:
        across = np.arange(int(image.shape[0] * spacing[0] // self.column_um))
        places = (across + 0.5) * self.column_um / spacing[0] - 0.5
        bruch, ilm = (np.interp(places, np.arange(len(line)), line) for line in (retina.bruch, retina.ilm))
        depth = (np.arange(self.rows) - (self.rows - self.below) + 0.5) * self.row_um / spacing[1]
        where = [np.broadcast_to(places[:, None], (len(places), self.rows)), bruch[:, None] + depth]
        blur = [0.35 * step for step in (self.column_um / spacing[0], self.row_um / spacing[1])]
        smooth = ndimage.gaussian_filter(_filled(image, retina.seen), blur)
        grey = ndimage.map_coordinates(smooth, where, order=1, mode="nearest")
        seen = ndimage.map_coordinates(retina.seen.astype(np.float32), where, order=1, mode="constant") > 0.99
        surface = (ilm - bruch) * spacing[1] / self.row_um + self.rows - self.below
        rows = np.arange(self.rows) + 0.5
        tissue = rows > surface[:, None] - 0.5
        counted = seen & (rows > surface[:, None] + self.surface) & (rows < self.rows - self.below + self.choroid)
        dark = _vitreous(image, retina, spacing[1])
        bright = float(np.percentile(grey[counted], _BRIGHT)) if counted.any() else dark + 1
        unit = np.where(tissue, (grey - dark) / max(bright - dark, 1e-6), 0.0)
        return _nearest_seen(unit_from_grey(unit.astype(np.float32)), seen), counted

    def _nothing(self, columns: int) -> tuple[Plane, Mask]:
        return np.full((columns, self.rows), -1, dtype=np.float32), np.zeros((columns, self.rows), dtype=np.bool_)

    def _laid(self, band: Plane, bruch: Line, shape: Sequence[int], spacing: Sequence[float]) -> Plane:
        columns = (np.arange(shape[0]) + 0.5) * spacing[0] / self.column_um - 0.5
        depth = np.arange(shape[1])[None] - bruch[:, None]
        rows = depth * spacing[1] / self.row_um + self.rows - self.below - 0.5
        where = [np.broadcast_to(columns[:, None], rows.shape), rows]
        inside = (rows > -0.5) & (rows < self.rows - 0.5)
        laid = ndimage.map_coordinates(band, where, order=1, mode="nearest")
        return np.where(inside, laid, 0.0).astype(np.float32)


def _found(planes: Plane, axial_um: float, lateral_um: float) -> list[Retina | None]:
    """The retina of each B-scan of `(X, Y, Z)`, None where there is none; of all, none is an error."""
    found: list[Retina | None] = []
    reasons = []
    for z in range(planes.shape[2]):
        try:
            found.append(find_retina(planes[..., z], axial_um, lateral_um))
        except IntensityError as error:
            found.append(None)
            reasons.append(str(error))
    if not any(found):
        raise IntensityError(reasons[0] if len(reasons) == 1 else f"{reasons[0]} (the first of {len(reasons)} B-scans)")
    return found


def place_of(band: MetaTensor, column: int, row: int, bscan: int) -> tuple[float, float, float]:
    """Returns where a pixel of a flattened B-scan lies, RAS+ [mm] as the input's affine states it.

    Args:
        band: made by `FlattenRetinad`.
        column: of the band.
        row: of the band.
        bscan: which one.
    """
    extra = band.applied_operations[-1]["extra_info"]
    lateral, axial = (float(um) for um in extra["spacing_um"])
    x = (column + 0.5) * float(extra["column_um"]) / lateral - 0.5
    bruch = np.asarray(extra["bruch"])[:, bscan]
    y = (
        float(np.interp(x, np.arange(len(bruch)), bruch))
        + (row + 0.5 - float(extra["bruch_row"])) * float(extra["row_um"]) / axial
    )
    place = np.asarray(extra["affine"], dtype=np.float64) @ [x, y, float(bscan), 1.0]
    return float(round(place[0], 3)), float(round(place[1], 3)), float(round(place[2], 3))


def _filled(image: Plane, seen: Mask) -> Plane:
    return np.where(seen, image, np.float32(np.median(image[seen])))


def _vitreous(image: Plane, retina: Retina, axial_um: float) -> float:
    """Mean grey of the vitreous: what is not tissue has it, noise included."""
    above = retina.seen & (np.arange(image.shape[1]) < retina.ilm[:, None] - 8 * AXIAL_UM / axial_um)
    return float(image[above].mean()) if above.sum() > 500 else float(np.percentile(image[retina.seen], 30))


def _nearest_seen(band: Plane, seen: Mask) -> Plane:
    """Fills what was not seen from the nearest column that was, so that a wedge is no lesion to its neighbours."""
    if seen.all() or not seen.any():
        return band
    nearest = ndimage.distance_transform_edt(~seen, sampling=(1.0, 1e3), return_distances=False, return_indices=True)
    return np.asarray(band[tuple(nearest)])
