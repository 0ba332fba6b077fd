"""CT at random lower doses, to learn from: projected once for each scan, randomised for each window."""

import logging
import zlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from torch import Tensor
from torch.nn import functional

from medgen.errors import GeometryError, IntensityError
from medgen.prepare.intensity import HU_RANGE
from medgen.simulate.dose import PADDING_HU, CtScanner, missing_noise, noise_fields

Array = npt.NDArray[np.float32]

_MOST_ACROSS = 0.7
_MATCHED = 0.5  # how often
_RIM = 16  # pixels around a window that hide its end from the filter, which is periodic
_OWN_CUTOFF = "own_cutoff_per_mm"  # in the metadata of the noise
_log = logging.getLogger(__name__)


class FittedNoise(Protocol):
    """What a scan's own noise tells: the flux, and where the scan's kernel ends `[cycles/mm]`."""

    @property
    def photons(self) -> float: ...  # noqa: D102

    @property
    def kernel(self) -> float: ...  # noqa: D102


class DoseFieldsd(MapTransform):  # type: ignore[misc]
    """Adds the noise that a scan would have at full dose, drawn slice by slice, as `RandLowDosed` takes it.

    It takes seconds a slice and is the same at every call, so that a `CacheDataset` keeps it.

    Args:
        keys: one scan `(1, X, Y, Z)` `[HU]` with slices along the last axis and square pixels, as read or resampled.
        noise_key: where the noise goes, `(4, X, Y, Z)` `[HU]`: of photons and of electronics, no kernel chosen yet;
            then both mirrored along X, another draw, as a body is much the same on both sides.
        image_key: an item that has it has been scanned at a lower dose already, and passes as it is.
        seed: of the draw.
        scanner: where `fit` tells the flux, that counts.
        fit: tells flux and kernel from a scan `(X, Y, Z)` `[HU]` and the side of its pixels `[mm]`, or None where it
            cannot (`medgen.run.dose.fit_own_noise`); the log says what was found.
        across: correlation of the noise of neighbouring slices, up to 0.7: a helical scanner's slices overlap. Where it
            is left out, slices that are averaged keep more of their own noise than of what is added.

    Raises:
        GeometryError: the pixels are not square, or not known.
        IntensityError: the correlation is out of range.
    """

    def __init__(
        self,
        keys: str | list[str],
        noise_key: str = "noise",
        image_key: str = "image",
        seed: int = 0,
        scanner: CtScanner | None = None,
        across: float = 0.0,
        fit: Callable[[Array, float], FittedNoise | None] = lambda volume, pixel_mm: None,
    ) -> None:
        MapTransform.__init__(self, keys)
        if not 0 <= across <= _MOST_ACROSS:
            raise IntensityError(f"expected a correlation between slices from 0 to {_MOST_ACROSS}, got {across:g}")
        self.across, self.fit = across, fit
        self.noise_key, self.image_key, self.seed = noise_key, image_key, seed
        self.scanner = scanner or CtScanner()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draws the noise of every slice."""
        result = dict(data)
        if self.image_key in result:
            return result
        for key in self.key_iterator(result):
            scan = result[key]
            side = pixel_side_mm(scan)
            volume = torch.as_tensor(scan)[0].numpy()
            own = self.fit(volume, side)
            scanner = replace(self.scanner, photons=own.photons) if own else self.scanner
            told = f"its own noise speaks for a kernel that ends at {own.kernel:g} cycles/mm" if own else "as set"
            _log.info("scan of %d slices: %.3g photons a mm, %s", volume.shape[2], scanner.photons, told)
            drawn = [
                noise_fields(plane, side, self._rng(z, plane), kernel=np.inf, scanner=scanner)
                for z, plane in enumerate(np.moveaxis(volume, 2, 0))
            ]
            fields = np.stack([np.stack(field, axis=-1) for field in zip(*drawn, strict=True)])
            fields = _overlapping(fields, self.across)
            noise = torch.from_numpy(np.concatenate([fields, fields[:, ::-1]]))
            meta = {_OWN_CUTOFF: own.kernel} if own else {}
            result[self.noise_key] = MetaTensor(noise, affine=scan.affine, meta=meta)
        return result

    def _rng(self, index: int, plane: Array) -> np.random.Generator:
        """Draws of other scans are others, though they have as many slices."""
        return np.random.default_rng([self.seed, index, zlib.crc32(np.ascontiguousarray(plane).tobytes())])


def _overlapping(fields: Array, across: float) -> Array:
    """Mixes neighbours along the last axis so that they are correlated by `across`; variances stay."""
    if across == 0 or fields.shape[-1] < 2:
        return fields
    share = (1 - (1 - 2 * across**2) ** 0.5) / (2 * across)  # of each neighbour: 2 a / (1 + 2 a^2) is the correlation
    ends = np.pad(fields, [(0, 0)] * (fields.ndim - 1) + [(1, 1)], mode="reflect")
    mixed = fields + share * (ends[..., :-2] + ends[..., 2:])
    spread = np.full(fields.shape[-1], 1 + 2 * share**2)
    spread[[0, -1]] = 1 + 4 * share**2  # both neighbours of an end are one and the same
    return np.asarray(mixed / spread**0.5, dtype=np.float32)


class RandLowDosed(Randomizable, MapTransform):  # type: ignore[misc]
    """Makes of a scan and its noise a scan at a random lower dose, seen through a random kernel.

    An item without noise, a pair of two doses already, passes as it is. Where the scan's own kernel is known (`fit` of
    `DoseFieldsd`), half of the scans are brought to the kernel of the added noise, if that is softer, and the noise
    gets the scan's sharpness: one kernel makes an image and all of its noise.

    Args:
        keys: scans `(1, X, Y, Z)` `[HU]`, or windows of them: what is to be learnt.
        image_key: where the scan at the lower dose goes.
        noise_key: what `DoseFieldsd` made, cut as the scan was; it is taken out.
        fraction: least and most of the dose; its logarithm is uniform.
        cutoff_per_mm: range of where the kernel's Hann window ends `[cycles/mm]`.
        flux: range of the scanner's photons at its full dose, relative to those that the scan was taken with; its
            logarithm is uniform. Where they are fewer, the scan itself gets the noise that it would then have; where
            they are more, it keeps the noise it has, and the step in dose is smaller than drawn.
        sharpness: range of the factor by which the scan's own finest detail, and its noise, is raised or lowered first,
            as by another kernel; its logarithm is uniform. (1, 1) leaves scans as they are.
    """

    def __init__(
        self,
        keys: str | list[str],
        image_key: str = "image",
        noise_key: str = "noise",
        fraction: tuple[float, float] = (0.1, 0.5),
        cutoff_per_mm: tuple[float, float] = (0.6, 1.6),
        flux: tuple[float, float] = (0.5, 2.0),
        sharpness: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        MapTransform.__init__(self, keys)
        self.image_key, self.noise_key = image_key, noise_key
        self.fraction, self.cutoff_per_mm, self.flux, self.sharpness = fraction, cutoff_per_mm, flux, sharpness

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds the missing noise; padding stays padding."""
        result = dict(data)
        if self.noise_key not in result:
            return result
        for key in self.key_iterator(result):
            scan, noise = result[key], result.pop(self.noise_key)
            known = noise.meta.get(_OWN_CUTOFF) if isinstance(noise, MetaTensor) else None
            fields = torch.as_tensor(noise).numpy()
            ranges = (self.fraction, self.flux, self.sharpness)
            fraction, flux, sharpness = (float(np.exp(self.R.uniform(*np.log(ends)))) for ends in ranges)
            cutoff = float(self.R.uniform(*self.cutoff_per_mm))
            side = pixel_side_mm(scan)
            own = known if self.R.random() < _MATCHED else None
            if own is not None or sharpness != 1:
                other = sharpened(scan, side, sharpness)
                if own is not None:
                    other = softened(other, side, own, cutoff)
                scan = result[key] = torch.where(scan > PADDING_HU, other, scan)
            # Noise is as likely as its negative. Fewer photons: that of their number rises with the root, that of the
            # electronics in proportion.
            signs = self.R.choice((-1.0, 1.0), size=2)
            gains = np.float32(signs[0] * flux**-0.5), np.float32(signs[1] / flux)
            drawn = [missing_noise((fields[:1] * gains[0], fields[1:2] * gains[1]), fraction)]
            if flux < 1:
                drawn.append(missing_noise((fields[2:3], fields[3:]), flux))
            shaped, *more = (
                self._shaped(torch.from_numpy(np.ascontiguousarray(one)), side, cutoff, sharpness if own else 1.0)
                for one in drawn
            )
            if more:
                scan = result[key] = torch.where(scan > PADDING_HU, scan + more[0], scan)
            result[self.image_key] = torch.where(scan > PADDING_HU, scan + shaped, scan)
        return result

    @staticmethod
    def _shaped(noise: Tensor, side: float, cutoff: float, sharpness: float) -> Tensor:
        seen = seen_through(noise, side, cutoff)
        return seen if sharpness == 1 else _filtered(seen, side, _emphasis(side, sharpness))


def seen_through(noise: Tensor, pixel_mm: float, cutoff_per_mm: float) -> Tensor:
    """Filters noise `(C, X, Y, Z)` in every slice as a reconstruction kernel would have: by a Hann window in frequency.

    What a kernel does to projections it does to the image in all directions (central slice theorem), so noise that was
    reconstructed without one can get any, later.
    """
    return _filtered(noise, pixel_mm, lambda f: _hann(f, cutoff_per_mm))


def softened(scan: Tensor, pixel_mm: float, own_cutoff_per_mm: float, cutoff_per_mm: float) -> Tensor:
    """Brings a scan `(1, X, Y, Z)` `[HU]` from its own reconstruction kernel to a softer one; to a sharper, leaves it.

    Padding is taken for air here.
    """
    air = torch.as_tensor(scan).clamp_min(HU_RANGE[0])
    return _filtered(
        air,
        pixel_mm,
        lambda f: (_hann(f, cutoff_per_mm) / _hann(f, own_cutoff_per_mm).clamp_min(1e-3)).clamp_max(1.0),
    )


def sharpened(scan: Tensor, pixel_mm: float, gain: float) -> Tensor:
    """Raises or lowers the fine detail of a scan `(1, X, Y, Z)` `[HU]`, by `gain` at half a cycle a pixel.

    Padding is taken for air here.
    """
    return _filtered(torch.as_tensor(scan).clamp_min(HU_RANGE[0]), pixel_mm, _emphasis(pixel_mm, gain))


def _emphasis(pixel_mm: float, gain: float) -> Callable[[Tensor], Tensor]:
    """Returns a transfer function that rises from 1 to `gain` at half a cycle a pixel."""
    finest = 0.5 / pixel_mm
    return lambda f: 1 + (gain - 1) * torch.sin(0.5 * torch.pi * (f / finest).clamp_max(1)) ** 2


def _hann(frequency: Tensor, cutoff_per_mm: float) -> Tensor:
    return 0.5 + 0.5 * torch.cos(torch.pi * (frequency / cutoff_per_mm).clamp_max(1.0))


def _filtered(volume: Tensor, pixel_mm: float, transfer: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiplies every slice's spectrum by a function of the frequency `[cycles/mm]`."""
    x, y = volume.shape[1:3]
    rim = min(_RIM, x - 1, y - 1)
    planes = functional.pad(volume.movedim(-1, 1), (rim, rim, rim, rim), mode="reflect")
    along = [torch.fft.fftfreq(n, pixel_mm) for n in planes.shape[2:]]
    frequency = torch.hypot(along[0][:, None], along[1][None, : planes.shape[3] // 2 + 1].abs())
    planes = torch.fft.irfft2(torch.fft.rfft2(planes) * transfer(frequency), s=planes.shape[2:])
    filtered: Tensor = planes[..., rim : rim + x, rim : rim + y].movedim(1, -1)
    return filtered


def pixel_side_mm(scan: Tensor) -> float:
    """Returns the side of a scan's pixels in its first two axes `[mm]`.

    Raises:
        GeometryError: they are not square, or the scan has no affine.
    """
    if not isinstance(scan, MetaTensor):
        raise GeometryError("expected a scan with an affine (MetaTensor), got a plain tensor; load it with LoadImaged")
    sides = [float(side) for side in scan.pixdim[:2]]
    if abs(sides[0] - sides[1]) > 1e-3 * max(sides):
        raise GeometryError(f"expected square pixels, got {sides[0]:g} x {sides[1]:g} mm; resample the scan first")
    return sides[0]
