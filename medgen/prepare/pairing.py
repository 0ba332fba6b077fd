"""Brings two scans of one patient onto one grid, so that they can be a training pair: SimpleITK, mutual information.

Scans of one session share a frame of reference, but the patient moves between them by a few millimetres. Scans that a
study has already registered lie on one grid; published ones have been found to miss by up to 3 mm all the same.
"""

import logging
from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813  # the name that SimpleITK's own documentation uses
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy.ndimage import binary_erosion, binary_fill_holes, binary_opening, distance_transform_edt

from medgen.errors import GeometryError
from medgen.geometry import Grid, ras_to_lps, spacing_mm

Motion = Literal["rigid", "affine"]

_SHRINK, _SMOOTH_MM = (4, 2, 1), (4.0, 2.0, 0.0)
_SAMPLED_FRACTION = 0.1
_HISTOGRAM_BINS = 48
_SEED = 7
_STRIPPED_SHARE = 0.2  # of voxels that are exactly 0, above which an image is a bare brain
_RIM_VOXELS = 4
_MOST_MISSED_MM = 5.0

_log = logging.getLogger(__name__)


def to_sitk(volume: npt.ArrayLike, affine: npt.ArrayLike) -> sitk.Image:
    """Wraps a volume `(X, Y, Z)` with its RAS+ affine as a float32 SimpleITK image.

    Raises:
        GeometryError: if the axes are not perpendicular, which SimpleITK can't state.
    """
    lps = ras_to_lps(affine)
    spacing = spacing_mm(lps)
    direction = lps[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-3:
        raise GeometryError(
            "expected perpendicular axes to register, got a sheared grid; resample it onto a regular one first"
        )
    # The nearest rotation: headers keep six digits, SimpleITK asks for more.
    left, _, right = np.linalg.svd(direction)
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.asarray(volume, dtype=np.float32).T))
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(v) for v in lps[:3, 3]])
    image.SetDirection((left @ right).ravel().tolist())
    return image


def from_sitk(image: sitk.Image) -> npt.NDArray[np.float32]:
    """Returns the voxels of a SimpleITK image in index order `(X, Y, Z)`; undoes `to_sitk`."""
    return np.asarray(sitk.GetArrayFromImage(image).T, dtype=np.float32)


def register(
    fixed: sitk.Image, moving: sitk.Image, motion: Motion = "rigid", inside: sitk.Image | None = None
) -> sitk.Transform:
    """Finds the motion that maps points of `fixed` to points of `moving`, coarse to fine, by Mattes mutual information.

    The sampling is seeded, so the same inputs give the same motion, but for the rounding of sums over threads.

    Args:
        fixed: stays.
        moving: to be moved.
        motion: rigid within a patient, affine to an atlas.
        inside: where of `fixed` to compare; everywhere if not given.

    Source: Mattes et al., IEEE TMI 22(1), 2003.
    """
    start = sitk.Euler3DTransform() if motion == "rigid" else sitk.AffineTransform(3)
    if motion == "rigid":  # turns about the scan's middle: its origin may be far away, where a turn is a leap
        start.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()]))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_HISTOGRAM_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(_SAMPLED_FRACTION, _SEED)
    if inside is not None:
        method.SetMetricFixedMask(inside)
    levels = slice(1 if inside is not None else 0, None)  # what is nearly aligned needs no coarse search
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-3, numberOfIterations=150, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(_SHRINK[levels])
    method.SetSmoothingSigmasPerLevel(_SMOOTH_MM[levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    geometry = sitk.CenteredTransformInitializerFilter.GEOMETRY
    # Within a session the headers already agree to millimetres; an atlas lies elsewhere and is centred first.
    if motion == "affine":
        start = sitk.CenteredTransformInitializer(fixed, moving, start, geometry)
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def resample(
    moving: sitk.Image, fixed: sitk.Image, motion: sitk.Transform, outside: float = 0.0
) -> npt.NDArray[np.float32]:
    """Returns `moving` on the grid of `fixed` `(X, Y, Z)` by a cubic B-spline, clipped to its range."""
    result = from_sitk(sitk.Resample(moving, fixed, motion, sitk.sitkBSpline, outside, sitk.sitkFloat32))
    low, high = from_sitk(moving).min(), from_sitk(moving).max()
    return np.clip(result, min(low, outside), high)


class RegisterToSourced(MapTransform):  # type: ignore[misc]
    """Puts `keys` onto the grid of `source_key` by a rigid motion.

    Volumes are channel-first `(1, X, Y, Z)` MetaTensors in the source's own orientation.

    Args:
        keys: to be moved.
        source_key: what they are moved onto.
        align: move also what already lies on the source's grid, where an earlier registration missed by a voxel or more
            (within one, interpolation costs more sharpness than the motion is worth); a background of exactly 0 stays
            so. Without it, such images are left as they are.
        outside: what lies beyond an image that is put onto another grid: -1000 for a CT.
        mask_key: where to write which voxels of the source the moved images cover, 1 or 0; a mask that is there is put
            onto the source's grid and loses the rest. What lies beyond a CT's field of view is not known to be air.
        allow_missing_keys: pass over what is not there.
    """

    def __init__(
        self,
        keys: list[str] | str,
        source_key: str = "image",
        align: bool = False,
        outside: float = 0.0,
        mask_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.source_key, self.align, self.outside, self.mask_key = source_key, align, outside, mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Registers what does not yet lie on the source's grid, and with `align` what does."""
        result = dict(data)
        source = result.get(self.source_key)
        covered: npt.NDArray[np.bool_] | None = None
        for key in self.key_iterator(result):
            if source is None:
                if self.allow_missing_keys:
                    break
                raise KeyError(self.source_key)
            if _grid(result[key]).differs_from(_grid(source)):
                fixed, moving = _image(source), _image(result[key])
                motion = register(fixed, moving)
                volume: npt.NDArray[np.float32] | None = resample(moving, fixed, motion, self.outside)
                inside = _covered(moving, fixed, motion)
                covered = inside if covered is None else covered & inside
            elif self.align:
                volume = _aligned(_image(source), _image(result[key]))
            else:
                continue
            if volume is not None:
                result[key] = MetaTensor(torch.from_numpy(volume)[None], affine=source.affine.clone())
        if self.mask_key is not None and source is not None:
            self._write_mask(result, source, covered)
        return result

    def _write_mask(
        self, result: dict[Hashable, Any], source: MetaTensor, covered: npt.NDArray[np.bool_] | None
    ) -> None:
        known = result.get(self.mask_key)
        if known is not None:
            still = sitk.Transform(3, sitk.sitkIdentity)
            inside = from_sitk(sitk.Resample(_image(known), _image(source), still, sitk.sitkNearestNeighbor, 0.0)) > 0.5
            covered = inside if covered is None else covered & inside
        mask = np.ones(source.shape[1:], np.float32) if covered is None else covered.astype(np.float32)
        result[self.mask_key] = MetaTensor(torch.from_numpy(mask)[None], affine=source.affine.clone())


def _covered(moving: sitk.Image, fixed: sitk.Image, motion: sitk.Transform) -> npt.NDArray[np.bool_]:
    """Which voxels of `fixed` lie within the field of view of `moving`."""
    view = sitk.Image(moving.GetSize(), sitk.sitkFloat32) + 1
    view.CopyInformation(moving)
    return from_sitk(sitk.Resample(view, fixed, motion, sitk.sitkLinear, 0.0, sitk.sitkFloat32)) > 0.5


def _aligned(fixed: sitk.Image, moving: sitk.Image) -> npt.NDArray[np.float32] | None:
    """Moves an image by what an earlier registration missed; None where that is within a voxel, or would be a leap."""
    inside = _interior(fixed)
    motion = register(fixed, moving, inside=inside)
    step = _largest_step_mm(fixed, motion)
    if step > _MOST_MISSED_MM:
        _log.warning(
            "expected a pair to miss by at most %g mm, got %.1f mm; it is left as it is", _MOST_MISSED_MM, step
        )
        return None
    if step < min(fixed.GetSpacing()):
        return None
    volume = resample(moving, fixed, motion)
    return volume if inside is None else volume * _moved_support(moving, fixed, motion)


def _grid(volume: MetaTensor) -> Grid:
    x, y, z = volume.shape[1:]
    return Grid((x, y, z), np.asarray(volume.affine, dtype=np.float64))


def _image(volume: MetaTensor) -> sitk.Image:
    return to_sitk(volume[0].numpy(), np.asarray(volume.affine, dtype=np.float64))


def _interior(image: sitk.Image) -> sitk.Image | None:
    """The inside of a stripped brain, whose rim would hold both images where it is; None for a whole head."""
    volume = from_sitk(image)
    if (volume == 0).mean() < _STRIPPED_SHARE:
        return None
    inner = binary_erosion(binary_fill_holes(volume != 0), iterations=_RIM_VOXELS)
    mask = sitk.GetImageFromArray(inner.T.astype(np.uint8))
    mask.CopyInformation(image)
    return mask


def _largest_step_mm(image: sitk.Image, motion: sitk.Transform) -> float:
    """How far a motion moves the corners of a box in the middle of an image, half as wide as it is."""
    size = np.asarray(image.GetSize(), dtype=np.float64)
    steps = []
    for corner in product((0.25, 0.75), repeat=3):
        point = image.TransformContinuousIndexToPhysicalPoint([float(v) for v in size * corner])
        steps.append(np.linalg.norm(np.subtract(motion.TransformPoint(point), point)))
    return float(max(steps))


def _moved_support(moving: sitk.Image, fixed: sitk.Image, motion: sitk.Transform) -> npt.NDArray[np.bool_]:
    """Where a moved image was not background; interpolation would leave a rim of nearly nothing there."""
    support = sitk.Cast(moving != 0, sitk.sitkFloat32)
    return from_sitk(sitk.Resample(support, fixed, motion, sitk.sitkLinear, 0.0, sitk.sitkFloat32)) > 0.99


class StripByAtlasd(MapTransform):  # type: ignore[misc]
    """Leaves only the brain of a whole head, where the item's `strip` says so: an atlas's brain, moved onto the head.

    The mask is good to a few millimetres: enough to teach a network what a stripped brain looks like, not to measure
    one.

    Args:
        keys: images `(1, X, Y, Z)` of one grid; the first is what the atlas is registered to.
        atlas: a file of the same contrast, a whole head or a brain alone.
        brain: a file with a brain alone, in the space of the atlas; its voxels above 0 are the brain.
        root: the folder to which both paths are relative.
        margin_mm: taken off the rim of the mask, where the atlas misses by most.
        strip_key: names the item's flag.
    """

    def __init__(
        self,
        keys: Sequence[str],
        atlas: str,
        brain: str,
        root: str = ".",
        margin_mm: float = 2.0,
        strip_key: str = "strip",
    ) -> None:
        super().__init__(keys)
        self.atlas, self.brain = Path(root, atlas), Path(root, brain)
        self.margin_mm, self.strip_key = margin_mm, strip_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Strips the keys, or leaves them as they are."""
        result = dict(data)
        if result.get(self.strip_key, False):
            brain = self._brain_mask(result[self.keys[0]])
            for key in self.key_iterator(result):
                result[key] = result[key] * torch.from_numpy(brain)[None]
        return result

    def _brain_mask(self, head: MetaTensor) -> npt.NDArray[np.bool_]:
        fixed = _image(head)
        brain = sitk.ReadImage(str(self.brain), sitk.sitkFloat32) > 0
        closed = sitk.BinaryMorphologicalClosing(brain, [3, 3, 3])
        filled = sitk.Cast(sitk.BinaryFillhole(closed), sitk.sitkFloat32)
        motion = register(fixed, sitk.ReadImage(str(self.atlas), sitk.sitkFloat32), "affine")
        mask = from_sitk(sitk.Resample(filled, fixed, motion, sitk.sitkLinear, 0.0, sitk.sitkFloat32)) > 0.5
        spacing = [float(s) for s in fixed.GetSpacing()]
        inner = distance_transform_edt(mask, sampling=spacing) > self.margin_mm
        return _without_dark_rim(from_sitk(fixed), np.asarray(inner), spacing)


def _without_dark_rim(
    head: npt.NDArray[np.float32], brain: npt.NDArray[np.bool_], spacing: Sequence[float]
) -> npt.NDArray[np.bool_]:
    """Takes bone and air off the outer 8 mm of a brain mask: what is far darker than the brain's median."""
    tissue = binary_opening(head > 0.35 * np.median(head[brain]))
    core = distance_transform_edt(brain, sampling=spacing) > 8.0
    return np.asarray(brain & (tissue | core), dtype=np.bool_)
