"""CT at random lower doses, to learn from: projected once for each scan, randomised for each window."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from torch import Tensor
from torch.nn import functional

from medgen.errors import GeometryError
from medgen.simulate.dose import PADDING_HU, CtScanner, missing_noise, noise_fields

_RIM = 16  # pixels around a window that hide its end from the filter, which is periodic


class DoseFieldsd(MapTransform):  # type: ignore[misc]
    """Adds the noise that a scan would have at full dose, drawn slice by slice, as `RandLowDosed` takes it.

    It takes seconds a slice and is the same at every call, so that a `CacheDataset` keeps it.

    Args:
        keys: scans `(1, X, Y, Z)` `[HU]` with slices along the last axis and square pixels, as read or resampled.
        noise_key: where the noise goes, `(2, X, Y, Z)` `[HU]`: of photons and of electronics, no kernel chosen yet.
        seed: of the draw.
        photons: see `CtScanner`.
        electronic: see `CtScanner`.
        views: see `CtScanner`.
        allow_missing_keys: pass items without a scan on.

    Raises:
        GeometryError: the pixels are not square, or not known.
    """

    def __init__(
        self,
        keys: str | list[str],
        noise_key: str = "noise",
        seed: int = 0,
        photons: float = 1.5e6,
        electronic: float = 10.0,
        views: int = 720,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.noise_key, self.seed = noise_key, seed
        self.scanner = CtScanner(photons=photons, electronic=electronic, views=views)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draws the noise of every slice."""
        result = dict(data)
        for key in self.key_iterator(result):
            scan = result[key]
            side = pixel_side_mm(scan)
            volume = torch.as_tensor(scan)[0].numpy()
            drawn = [
                noise_fields(
                    volume[..., z], side, np.random.default_rng([self.seed, z]), kernel=np.inf, scanner=self.scanner
                )
                for z in range(volume.shape[2])
            ]
            noise = torch.from_numpy(np.stack([np.stack(field, axis=-1) for field in zip(*drawn, strict=True)]))
            result[self.noise_key] = MetaTensor(noise, affine=scan.affine)
        return result


class RandLowDosed(Randomizable, MapTransform):  # type: ignore[misc]
    """Makes of a scan and its noise a scan at a random lower dose, seen through a random kernel.

    Args:
        keys: scans `(1, X, Y, Z)` `[HU]`, or windows of them; they stay as they are, to be learnt.
        image_key: where the scan at the lower dose goes.
        noise_key: what `DoseFieldsd` made, cut as the scan was; it is taken out.
        fraction: least and most of the dose; its logarithm is uniform.
        cutoff_per_mm: range of where the kernel's Hann window ends `[cycles/mm]`.
        flux: range of the scanner's photons, relative to those that the noise was drawn for; its logarithm is uniform.
        allow_missing_keys: pass items without a scan on.
    """

    def __init__(
        self,
        keys: str | list[str],
        image_key: str = "image",
        noise_key: str = "noise",
        fraction: tuple[float, float] = (0.1, 0.5),
        cutoff_per_mm: tuple[float, float] = (0.6, 1.6),
        flux: tuple[float, float] = (0.5, 2.0),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.image_key, self.noise_key = image_key, noise_key
        self.fraction, self.cutoff_per_mm, self.flux = fraction, cutoff_per_mm, flux

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds the missing noise; padding stays padding."""
        result = dict(data)
        for key in self.key_iterator(result):
            scan, fields = result[key], torch.as_tensor(result.pop(self.noise_key)).numpy()
            fraction, flux = (float(np.exp(self.R.uniform(*np.log(ends)))) for ends in (self.fraction, self.flux))
            cutoff = float(self.R.uniform(*self.cutoff_per_mm))
            # Fewer photons: the noise of their number rises with the root, that of the electronics in proportion.
            noise = missing_noise((fields[:1] * np.float32(flux**-0.5), fields[1:] * np.float32(1 / flux)), fraction)
            shaped = seen_through(torch.from_numpy(noise), pixel_side_mm(scan), cutoff)
            result[self.image_key] = torch.where(scan > PADDING_HU, scan + shaped, scan)
        return result


def seen_through(noise: Tensor, pixel_mm: float, cutoff_per_mm: float) -> Tensor:
    """Filters noise `(C, X, Y, Z)` in every slice as a reconstruction kernel would have: by a Hann window in frequency.

    What a kernel does to projections it does to the image in all directions (central slice theorem), so noise that was
    reconstructed without one can get any, later.
    """
    x, y = noise.shape[1:3]
    rim = min(_RIM, x - 1, y - 1)
    planes = functional.pad(noise.movedim(-1, 1), (rim, rim, rim, rim), mode="reflect")
    along = [torch.fft.fftfreq(n, pixel_mm) for n in planes.shape[2:]]
    part = (torch.hypot(along[0][:, None], along[1][None, : planes.shape[3] // 2 + 1]) / cutoff_per_mm).clamp_max(1.0)
    window = 0.5 + 0.5 * torch.cos(torch.pi * part)
    planes = torch.fft.irfft2(torch.fft.rfft2(planes) * window, s=planes.shape[2:])
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
