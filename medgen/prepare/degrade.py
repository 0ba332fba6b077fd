"""Random damage that teaches a network other scanners: deformation, contrast, bias field, noise and thick slices.

Everything here acts on channel-first volumes `(C, X, Y, Z)` and keeps a background of exactly 0. The exact parts are
functions; the transforms draw their parameters and call them. Draws come from `self.R`, so `set_random_state` makes
them repeatable.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional


def monotone_curve(volume: Tensor, knots: Tensor, top: float = 2.0) -> Tensor:
    """Maps intensities by the rising curve that is piecewise linear through `knots`, equally spaced over 0 to `top`.

    Args:
        volume: any shape; values below 0 are mapped to the first knot, values above `top` are moved with the last one.
        knots: `(K,)`, not falling. `torch.linspace(0, top, K)` changes nothing between 0 and `top`.
        top: intensity of the last knot.
    """
    position = (volume / top).clamp(0.0, 1.0) * (len(knots) - 1)
    low = position.floor().clamp_max(len(knots) - 2)
    index = low.long()
    inside = torch.lerp(knots[index], knots[index + 1], position - low)
    return inside + (volume - top).clamp_min(0.0)


def smooth_field(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Blows up a few control values `(C, a, b, c)` to a smooth field `(C, X, Y, Z)`."""
    return functional.interpolate(values[None], size=list(shape), mode="trilinear", align_corners=True)[0]


def thick_slices(volume: Tensor, axis: int, thickness: int, offset: int = 0) -> Tensor:
    """Averages slabs of voxels along one axis and interpolates back: what a thick-slice scan leaves of a volume.

    Args:
        volume: `(C, X, Y, Z)`.
        axis: 0, 1 or 2.
        thickness: slab `[voxels]`; 1 changes nothing.
        offset: where the first full slab begins, 0 to thickness - 1.
    """
    if thickness == 1:
        return volume
    moved = volume.movedim(axis + 1, -1)
    flat = moved.reshape(1, -1, moved.shape[-1])
    length = flat.shape[-1]
    before = (thickness - offset) % thickness
    after = -(length + before) % thickness
    slabs = functional.avg_pool1d(functional.pad(flat, (before, after), mode="replicate"), thickness)
    back = functional.interpolate(slabs, scale_factor=float(thickness), mode="linear", align_corners=False)
    return back[..., before : before + length].reshape(moved.shape).movedim(-1, axis + 1)


def sampling_grid(rotation: Tensor, centre: Tensor, size: Sequence[int]) -> Tensor:
    """Returns where the voxels of a window lie in a volume, `(X, Y, Z, 3)` in voxels of the volume.

    Args:
        rotation: turns and scales the window, `(3, 3)`.
        centre: of the window in the volume `[voxels]`, `(3,)`.
        size: of the window `[voxels]`.
    """
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return offsets @ rotation.T + centre


def sample(volume: Tensor, positions: Tensor, padding: str = "zeros") -> Tensor:
    """Reads a volume `(C, X, Y, Z)` at voxel `positions` `(x, y, z, 3)` by linear interpolation.

    Args:
        volume: of any real type; only the part that the positions lie in becomes float32.
        positions: `[voxels]`.
        padding: outside is 0 (`zeros`), or the nearest voxel (`border`).
    """
    flat = positions.reshape(-1, 3)
    ends = torch.tensor(volume.shape[1:])
    low = (flat.amin(dim=0).floor().long() - 1).clamp(min=0).minimum(ends - 1)
    high = (flat.amax(dim=0).ceil().long() + 2).maximum(low + 1).minimum(ends)
    part = volume[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]].float()
    unit = (2 * (positions - low) + 1) / (high - low) - 1
    # grid_sample counts the last axis first.
    return functional.grid_sample(part[None], unit.flip(-1)[None], padding_mode=padding, align_corners=False)[0]


class RandWindowd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Cuts one random window from all keys alike: turned, scaled, mirrored and bent, in a single interpolation.

    Args:
        keys: volumes `(C, X, Y, Z)` of one grid, RAS.
        size: of the window `[voxels]`; None keeps the volume's own.
        max_turn: largest rotation about each axis `[degrees]`.
        max_scale: largest relative change of size along each axis.
        max_bend: largest displacement of the deformation's control points `[voxels]`.
        prob: how often the window is turned, scaled and bent at all; it is placed and mirrored at random always.
        padding: outside the volume is 0 (`zeros`), or its nearest voxel (`border`).
        allow_missing_keys: cut those that are there.
    """

    def __init__(
        self,
        keys: Sequence[str],
        size: Sequence[int] | None,
        max_turn: float = 12.0,
        max_scale: float = 0.12,
        max_bend: float = 4.0,
        prob: float = 0.9,
        padding: str = "zeros",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.size, self.padding = size, padding
        self.max_turn, self.max_scale, self.max_bend = max_turn, max_scale, max_bend

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cuts the window; the keys come back as plain float32 tensors."""
        self.randomize(None)
        result = dict(data)
        present = list(self.key_iterator(result))
        if not present:
            return result
        volumes = [torch.as_tensor(result[key]) for key in present]
        positions = self._positions(volumes[0].shape[1:])
        for key, volume in zip(present, volumes, strict=True):
            plain = volume.as_tensor() if hasattr(volume, "as_tensor") else volume
            result[key] = sample(plain, positions, self.padding).contiguous()
        return result

    def _positions(self, shape: Sequence[int]) -> Tensor:
        size = tuple(self.size or shape)
        # Windows stay inside the volume where it is larger than they are, and are centred where it is not.
        room = [max(0.0, (n - s) / 2) + 4.0 for n, s in zip(shape, size, strict=True)]
        centre = [(n - 1) / 2 + self.R.uniform(-r, r) for n, r in zip(shape, room, strict=True)]
        matrix = np.eye(3)
        if self._do_transform:
            turns = np.radians(self.R.uniform(-self.max_turn, self.max_turn, 3))
            matrix = _rotation(turns) * (1 + self.R.uniform(-self.max_scale, self.max_scale, 3))
        if self.R.rand() < 0.5:
            matrix[:, 0] *= -1
        grid = sampling_grid(torch.tensor(matrix, dtype=torch.float32), torch.tensor(centre, dtype=torch.float32), size)
        if self._do_transform and self.max_bend > 0:
            control = torch.tensor(self.R.uniform(-self.max_bend, self.max_bend, (3, 5, 5, 5)), dtype=torch.float32)
            grid += smooth_field(control, size).permute(1, 2, 3, 0)
        return grid


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


class RandThickSlicesd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Makes all keys thick along one random axis, with slabs of one thickness.

    Args:
        keys: volumes of one grid.
        thickness: smallest and largest slab `[voxels]`.
        prob: how often.
        aligned: all keys have the same slabs, as what is made on an image's grid has; else each its own, as two
            series of a session have.
        allow_missing_keys: make those thick that are there.
    """

    def __init__(
        self,
        keys: Sequence[str],
        thickness: tuple[int, int] = (2, 5),
        prob: float = 0.3,
        aligned: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.thickness, self.aligned = thickness, aligned

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Averages slabs along one axis."""
        self.randomize(None)
        result = dict(data)
        if self._do_transform:
            axis, thickness = int(self.R.randint(3)), int(self.R.randint(self.thickness[0], self.thickness[1] + 1))
            start = int(self.R.randint(thickness))
            for key in self.key_iterator(result):
                result[key] = thick_slices(result[key], axis, thickness, start)
                start = start if self.aligned else int(self.R.randint(thickness))
        return result


class RandContrastd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Another scanner's T1: a rising random curve, a bias field, blur and noise; never an inversion.

    Args:
        keys: images with white matter near 1 and background 0.
        gamma: the exponent lies between exp(-gamma) and exp(gamma).
        bend: how uneven the rising curve is, 0 for straight.
        bias: size of the multiplicative field, relative.
        noise: largest standard deviation of the (Rician) noise.
        prob: how often each kind of damage is done.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        gamma: float = 0.35,
        bend: float = 0.4,
        bias: float = 0.2,
        noise: float = 0.06,
        prob: float = 0.6,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.gamma, self.bend, self.bias, self.noise, self.each = gamma, bend, bias, noise, prob

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Damages each key in the order in which a scanner would: contrast, field, noise."""
        result = dict(data)
        for key in self.keys:
            result[key] = self._damage(result[key])
        return result

    def _damage(self, volume: Tensor) -> Tensor:
        head = volume > 0
        if self.R.rand() < self.each:
            volume = volume.clamp_min(0).pow(float(np.exp(self.R.uniform(-self.gamma, self.gamma))))
        if self.R.rand() < self.each:
            steps = 1 + self.bend * self.R.uniform(-1, 1, 8)
            knots = np.concatenate([[0.0], np.cumsum(steps) / steps.sum() * 2.0])
            volume = monotone_curve(volume, torch.tensor(knots, dtype=torch.float32))
        if self.R.rand() < self.each:
            values = torch.tensor(self.R.uniform(-self.bias, self.bias, (1, 3, 3, 3)), dtype=torch.float32)
            volume = volume * smooth_field(values, volume.shape[1:]).exp()
        if self.R.rand() < self.each:
            volume = self._noisy(volume)
        return torch.where(head, volume * float(self.R.uniform(0.88, 1.12)), torch.zeros(()))

    def _noisy(self, volume: Tensor) -> Tensor:
        level = float(self.R.uniform(0, self.noise))
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31 - 1)))
        real, imaginary = torch.randn((2, *volume.shape), generator=generator) * level
        return torch.hypot(volume + real, imaginary)
