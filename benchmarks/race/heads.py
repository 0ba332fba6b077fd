"""What the arms are given: simulated scans as files, written once into the work folder."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from medgen.geometry import Grid
from medgen.simulate.brain import simulate_brain
from medgen.simulate.brain_mr import random_brain_mr
from medgen.simulate.oct import simulate_bscan
from medgen.simulate.sample import head_grid, sagittal, simulate_t1
from medgen.simulate.trunk import trunk_hu

VERSION = 1  # of what is written here
Write = Callable[[Path, int], None]

_HEAD = (181, 217, 181)
_CT_NOISE_HU = 25.0


def write_head(path: Path, seed: int) -> None:
    """A T1 of a whole head with Rician noise, 1 mm, float32; its x axis runs to the left in every other one."""
    grid = head_grid(_HEAD, (1.0, 1.0, 1.0))
    head, affine = simulate_t1(grid, seed=seed), grid.affine.copy()
    if seed % 2 == 0:
        head, affine = (
            head[::-1],
            affine @ np.array([[-1, 0, 0, _HEAD[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        )
    _save(np.ascontiguousarray(head, dtype=np.float32), affine, path)


def write_sagittal(path: Path, seed: int) -> None:
    """The same in sagittal slices, 0.94 x 0.94 x 1.0 mm, int16: what has to be turned and resampled."""
    grid = sagittal(head_grid((170, 256, 256), (1.0, 0.94, 0.94)))
    _save(np.rint(simulate_t1(grid, seed=seed)).astype(np.int16), grid.affine, path)


def write_flair(path: Path, seed: int) -> None:
    """A FLAIR of a bare brain, 1 mm, int16."""
    grid = head_grid((161, 193, 161), (1.0, 1.0, 1.0))
    image = random_brain_mr(simulate_brain(grid, seed=seed, head=False), "FLAIR", np.random.default_rng(seed))
    _save(np.rint(500 * image).astype(np.int16), grid.affine, path)


def write_trunk(path: Path, seed: int) -> None:
    """A noisy CT of the abdomen, 40 slices of 512 x 512, 0.78 x 0.78 x 3 mm, int16."""
    affine = np.diag([0.78, 0.78, 3.0, 1.0])
    affine[:3, 3] = -np.array([0.78, 0.78, 3.0]) * (np.array([511, 511, 39]) / 2)
    grid = Grid((512, 512, 40), affine)
    noise = np.random.default_rng(seed).normal(scale=_CT_NOISE_HU, size=grid.shape)
    _save(np.rint(trunk_hu(grid, seed) + noise).clip(-1024, 3071).astype(np.int16), affine, path)


def write_retina(path: Path, seed: int) -> None:
    """A B-scan of a retina as a PNG."""
    Image.fromarray(simulate_bscan(seed, (512, 496)).image.T.astype(np.uint8)).save(path)


def _save(voxels: npt.NDArray[np.generic], affine: npt.NDArray[np.float64], path: Path) -> None:
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, path)


# Kind: how its files are made, and how they are called after a number.
KINDS: dict[str, tuple[Write, str]] = {
    "head": (write_head, "_T1w.nii.gz"),
    "sagittal": (write_sagittal, "_T1w.nii.gz"),
    "flair": (write_flair, "_FLAIR.nii.gz"),
    "trunk": (write_trunk, "_CT.nii.gz"),
    "retina": (write_retina, ".png"),
}


def find_scans(work: Path, kind: str, count: int, say: Callable[[str], None]) -> list[Path]:
    """Returns so many files of a kind in the work folder; simulates those that are not there."""
    write, end = KINDS[kind]
    folder = work / f"scans-{VERSION}" / kind
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind}-{number:02d}{end}" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.is_file():
            say(f"simulating {path.name}, once")
            part = path.with_name(f"part-{path.name}")
            write(part, number)
            part.rename(path)
    return paths


def gather(paths: Sequence[Path], folder: Path) -> Path:
    """Makes a folder that holds these files and no others: the same bytes on disk where links can be made."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in paths:
        try:
            os.link(path.resolve(), folder / path.name)
        except OSError:  # another file system
            shutil.copy2(path, folder / path.name)
    return folder


def enlarged(path: Path, target: Path, times: float) -> Path:
    """Writes a head of `times` as many voxels as that of a file, of the same size each: a larger head."""
    if not target.is_file():
        image = nib.load(path)
        voxels = np.asarray(image.dataobj)
        shape = [round(n * times ** (1 / 3)) for n in voxels.shape]
        index = [np.arange(n) * old // n for n, old in zip(shape, voxels.shape, strict=True)]
        _save(voxels[np.ix_(*index)], image.affine, target)
    return target
