"""Where in a head a brain can be: the average brain, fitted to what was found, cuts off neck, eyes and scalp."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813  # the name that SimpleITK's own documentation uses
from scipy.ndimage import label

from medgen.errors import BundleError
from medgen.prepare.pairing import from_sitk, to_sitk

Mask = npt.NDArray[np.bool_]

_COARSE_MM = 5.0
_TRIM_MM = (12.0, 7.0)  # each fit looks at what lies this near to the fit before
_ROOM_MM = 80.0
_LEAST_OVERLAP = 0.75  # Dice of fit and mask: below it, the mask is no brain of a usual shape, and is left alone
_THREAD_MM = 2.0  # half the thickness of what hangs on to a brain and is none of it


def within_shape(brain: Mask, affine: npt.ArrayLike, shape: sitk.Image, margin_mm: float = 5.0) -> Mask:
    """Returns what of a mask lies within the average brain or near to it, in one piece.

    The average is fitted by an affine motion, mask to mask, and fitted again to what lay near it: what hangs on to a
    brain (muscles of the neck, the cord, an eye) does not pull it. Where no brain of a usual shape fits, as in a slab
    or after surgery, the mask comes back as it is.

    Args:
        brain: `(X, Y, Z)`, too large rather than too small.
        affine: of its voxels, to RAS+ [mm].
        shape: the average brain, 0 to 1, in a space of the same directions.
        margin_mm: around the average that may still be brain: people differ.
    """
    mask = to_sitk(brain.astype(np.float32), affine)
    coarse = _coarse(mask)
    # Places outside of the average count for nothing in a fit: with room around it, few are.
    room = [int(_ROOM_MM / step) for step in shape.GetSpacing()]
    shape = sitk.ConstantPad(shape, room, room)
    motion, kept = None, coarse
    for reach in (None, *_TRIM_MM):
        if reach is not None and motion is not None:
            near = sitk.Resample(shape, coarse, motion, sitk.sitkLinear, 0.0)
            kept = coarse * sitk.Cast(_around(near, reach), sitk.sitkFloat32)
        motion = _fitted(kept, shape, motion)
    fit = sitk.Resample(shape, mask, motion, sitk.sitkLinear, 0.0)
    inside = from_sitk(fit) > 0.5
    near = from_sitk(_around(fit, margin_mm)) > 0
    found = brain & near
    if 2 * float((inside & brain).sum()) <= _LEAST_OVERLAP * float(inside.sum() + brain.sum()):
        return brain
    return _one_piece(found, [float(step) for step in mask.GetSpacing()])


def distance_mm(target: Mask, spacing: Sequence[float]) -> npt.NDArray[np.float32]:
    """Returns how far each voxel's middle is from the nearest voxel of a mask `(X, Y, Z)`; infinite if it is empty.

    The same as `scipy.ndimage.distance_transform_edt(~target, spacing)`, several times as fast.

    Example:
        >>> distance_mm(np.array([True, False, False]).reshape(1, 1, 3), (1.0, 1.0, 2.0)).tolist()
        [[[0.0, 2.0, 4.0]]]
    """
    if not target.any():
        return np.full(target.shape, np.inf, dtype=np.float32)
    image = sitk.GetImageFromArray(target.view(np.uint8))
    image.SetSpacing([float(step) for step in reversed(spacing)])
    signed = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    away: npt.NDArray[np.float32] = np.maximum(sitk.GetArrayViewFromImage(signed), np.float32(0))
    return away


def read_shape(path: str) -> sitk.Image:
    """Reads an average brain.

    Raises:
        BundleError: there is no such image.
    """
    try:
        return sitk.ReadImage(path, sitk.sitkFloat32)
    except RuntimeError as error:
        raise BundleError(
            f"expected an average brain at {path}, a NIfTI volume of 0 to 1, could not read it"
        ) from error


def _coarse(mask: sitk.Image) -> sitk.Image:
    """A smooth mask on a coarse grid, with room around it."""
    smooth = sitk.SmoothingRecursiveGaussian(mask, _COARSE_MM / 2)
    size = [int(np.ceil(n * step / _COARSE_MM)) for n, step in zip(mask.GetSize(), mask.GetSpacing(), strict=True)]
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing([_COARSE_MM] * 3)
    grid.SetDirection(mask.GetDirection())
    grid.SetOrigin(mask.GetOrigin())
    return sitk.Resample(smooth, grid, sitk.Transform(), sitk.sitkLinear, 0.0)


def _around(fit: sitk.Image, reach_mm: float) -> sitk.Image:
    return sitk.SignedMaurerDistanceMap(fit > 0.5, insideIsPositive=False, useImageSpacing=True) <= reach_mm


def _fitted(fixed: sitk.Image, shape: sitk.Image, start: sitk.Transform | None) -> sitk.Transform:
    if start is None:
        start = sitk.CenteredTransformInitializer(
            fixed, shape, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
        )
        start = _best_tilt(fixed, shape, sitk.AffineTransform(start))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsConjugateGradientLineSearch(
        learningRate=1.0, numberOfIterations=15, lineSearchMaximumIterations=8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=False)
    composite = sitk.CompositeTransform(method.Execute(fixed, shape))
    return sitk.AffineTransform(composite.GetNthTransform(0))


def _best_tilt(fixed: sitk.Image, shape: sitk.Image, centred: sitk.AffineTransform) -> sitk.AffineTransform:
    """The nod of the head that fits best to begin with: what a scan's slices follow differs between hospitals."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    found: list[tuple[float, int, sitk.AffineTransform]] = []
    for degrees, lift in product((-20, -10, 0, 10, 20), (0.0, 15.0)):
        tilted = sitk.AffineTransform(centred)
        tilted.Rotate(1, 2, np.radians(degrees))
        tilted.SetTranslation([a + b for a, b in zip(tilted.GetTranslation(), (0.0, 0.0, -lift), strict=True)])
        method.SetInitialTransform(tilted, inPlace=False)
        found.append((method.MetricEvaluate(fixed, shape), len(found), tilted))
    return min(found)[2]


def _one_piece(mask: Mask, spacing: list[float]) -> Mask:
    """The largest piece once threads are cut, with what lies next to it grown back."""
    deep = distance_mm(~mask, spacing) > _THREAD_MM
    parts, count = label(deep)
    if count == 0:
        return mask
    largest = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    grown = distance_mm(largest, spacing) <= _THREAD_MM + 0.5 * max(spacing)
    return np.asarray(mask & grown, dtype=np.bool_)
