"""What the latents of a bundle's autoencoder are good for: storing scans, walking between them, mapping a cohort."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import ResizeWithPadOrCrop, SpatialResample
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from medgen.errors import BundleError, NoInputError, OutputError
from medgen.geometry import Grid
from medgen.infer.codec import (
    StoredCode,
    concept_vector,
    load_code,
    quantised,
    require_model,
    slerp,
    summary_of,
)
from medgen.infer.memory import kept_memory
from medgen.read.discover import find_cases
from medgen.read.reader import read_image
from medgen.run import predict
from medgen.run.bundle import OpenBundle
from medgen.write.atomic import atomic_text, atomic_write
from medgen.write.nifti import write_volume
from medgen.write.scatter import write_scatter
from medgen.write.sheet import write_sheet

Volume = npt.NDArray[np.float32]
MapMethod = Literal["pca", "tsne"]

SAMPLE_UNIT = 1000.0
_PEAK_PERCENTILE = 99.5


@dataclass(frozen=True)
class Encoded:
    """How well a scan is stored.

    Attributes:
        bytes: of the file.
        bits_per_voxel: of the file, by voxels of the scan as it was read.
        psnr_db: of what it decodes to against what the network was given, where that is not empty; peak its 99.5th
            percentile.
    """

    bytes: int
    bits_per_voxel: float
    psnr_db: float


def encode_scan(
    bundle: OpenBundle, source: Path, output: Path, box: Sequence[int] | None = None, *, allow_irregular: bool = False
) -> Encoded:
    """Stores the scan at `source` as its latent, `output` (.npz).

    Args:
        bundle: with an autoencoder.
        source: one file, or a folder with one series.
        output: to write.
        box: voxels of the network's grid to encode, around the middle; None takes the brain's own box. Latents can be
            compared and mixed where the box is the same.
        allow_irregular: resample irregular series instead of refusing them.

    Raises:
        MedgenError: the scan cannot be used, or the bundle has no latent.
    """
    coder = _coder(bundle)
    if output.suffix != ".npz":  # by which `concept` and `map` know latents
        raise OutputError(f"expected a file .npz to write the latent to, got {output.name}")
    cases = find_cases(source, salt=b"latent", modality=bundle.metadata.modality_in)
    found = [case for case in cases if not case.excluded]
    if len(found) != 1:
        raise NoInputError(f"expected one scan at {source.name}, got {len(found)}; see `medgen inspect`")
    image = read_image(found[0], allow_irregular=allow_irregular)
    prepared = predict.prepare(bundle, found[0], image)
    seen = _boxed(prepared.item[bundle.image_key], box, coder.factor)
    try:
        coder.code_shape(seen.shape[1:])
    except ValueError as error:
        raise BundleError(f"{error}; see --box") from error
    with torch.no_grad(), kept_memory(bundle.device):
        mean, log_variance = coder.encode(seen.as_tensor()[None].to(bundle.device))
    spread = (0.5 * log_variance[0]).exp().cpu().numpy()
    latent, steps = quantised(mean[0].cpu().numpy(), spread)
    code = StoredCode(
        latent, steps, _grid_of(seen), _grid_of(image), float(seen.meta.get("unit", 1.0)), bundle.name,
        bundle.weights_sha256, {"settings": dict(bundle.settings), "flags": list(prepared.flags)},
    )  # fmt: skip
    content = code.to_bytes()
    with atomic_write(output) as part:
        part.write_bytes(content)
    truth = seen.as_tensor()[0].numpy()
    inside = truth > 0
    squared = float(np.square(_decoded(bundle, code) - truth)[inside].mean()) if inside.any() else 0.0
    peak = float(np.percentile(truth[inside], _PEAK_PERCENTILE)) if inside.any() else 1.0
    return Encoded(
        len(content), 8 * len(content) / image[0].numel(), float(10 * np.log10(peak**2 / max(squared, 1e-12)))
    )


def decode_file(bundle: OpenBundle, path: Path, output: Path, *, own_grid: bool = False) -> Grid:
    """Writes the scan that a latent stands for as NIfTI, in its own values; returns the grid that it lies on.

    Args:
        bundle: the one that made it.
        path: of the latent.
        output: `.nii` or `.nii.gz`.
        own_grid: on the network's grid instead of the scan's.

    Raises:
        BundleError: the latent is of other weights.
        UnreadableError: it is none.
        OutputError: the output is not called as NIfTI.
    """
    if not output.name.endswith((".nii", ".nii.gz")):
        raise OutputError(f"expected a file name that ends in .nii or .nii.gz, got {output.name}")
    return _write(bundle, load_code(path), output, own_grid=own_grid)


def interpolate(bundle: OpenBundle, first: Path, second: Path, output: Path, steps: int = 5) -> list[Path]:
    """Writes the scans along the way from one latent to another, both included, and a picture of them.

    Raises:
        BundleError: a latent is of other weights.
        UnreadableError: one is none, or their shapes differ.
    """
    a, b = load_code(first), load_code(second)
    require_model(b, a.bundle, a.weights_sha256)
    a.moved(b.latent)  # of one shape
    shares = np.linspace(0, 1, max(steps, 2)).tolist()
    codes = [
        replace(a.moved(slerp(a.latent, b.latent, share)), unit=(1 - share) * a.unit + share * b.unit)
        for share in shares
    ]
    return _write_walk(bundle, codes, [f"{share:.2f}" for share in shares], output)


def traverse(
    bundle: OpenBundle, path: Path, output: Path, number: int, reach: float = 3.0, steps: int = 5
) -> list[Path]:
    """Writes scans in which one of the code's L numbers is moved by up to `reach` of its own spread, everywhere.

    Raises:
        NoInputError: the code has no such number.
        BundleError, UnreadableError: see `decode_file`.
    """
    code = load_code(path)
    if not 0 <= number < len(code.latent):
        raise NoInputError(f"expected a number from 0 to {len(code.latent) - 1}, got {number}")
    spread = float(code.latent[number].std()) or 1.0
    moves = np.linspace(-reach, reach, max(steps, 2))
    codes = []
    for move in moves:
        latent = code.latent.copy()
        latent[number] += np.float32(move * spread)
        codes.append(code.moved(latent))
    return _write_walk(bundle, codes, [f"{move:+.1f}" for move in moves], output)


def concept(
    bundle: OpenBundle,
    having: Sequence[Path],
    lacking: Sequence[Path],
    output: Path,
    to: Path,
    amounts: Sequence[float],
) -> list[Path]:
    """Finds the direction from those who lack something to those who have it, and moves a scan along it.

    Raises:
        BundleError, UnreadableError: see `concept_vector`.
    """
    groups = [[load_code(path) for path in paths] for paths in (having, lacking)]
    code = load_code(to)
    require_model(code, bundle.name, bundle.weights_sha256)
    require_model(groups[0][0], code.bundle, code.weights_sha256)
    direction = code.moved(concept_vector(*groups)).latent
    codes = [code.moved(code.latent + np.float32(amount) * direction) for amount in amounts]
    with atomic_write(output / "concept.npz") as part:
        part.write_bytes(code.moved(direction).to_bytes())
    return _write_walk(bundle, codes, [f"{amount:+.2f}" for amount in amounts], output)


def map_cohort(paths: Sequence[Path], output: Path, method: MapMethod = "pca", seed: int = 0) -> Path:
    """Lays latents out in the plane, near ones near each other: `map.csv` and `map.png`.

    Where all have one shape they are compared number by number, else by the mean and spread of each of the L numbers.

    Raises:
        NoInputError: fewer than three latents.
        BundleError: of several models.
    """
    codes = [load_code(path) for path in paths]
    if len(codes) < 3:
        raise NoInputError(f"expected at least three latents to map, got {len(codes)}")
    for code in codes[1:]:
        require_model(code, codes[0].bundle, codes[0].weights_sha256)
    alike = len({code.latent.shape for code in codes}) == 1
    vectors = np.stack([code.latent.ravel() if alike else summary_of(code) for code in codes])
    if method == "pca":
        fitted = PCA(n_components=2, random_state=seed).fit(vectors)
        places, told = fitted.transform(vectors), fitted.explained_variance_ratio_
        axes = tuple(f"component {n + 1}, {share:.0%} of the variance" for n, share in enumerate(told))
    else:
        near = min(30.0, (len(codes) - 1) / 3)
        places = TSNE(n_components=2, perplexity=near, random_state=seed, init="pca").fit_transform(vectors)
        axes = (f"t-SNE, perplexity {near:.1f}", "")
    names = [path.stem for path in paths]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["latent", "x", "y"])
    writer.writerows([name, f"{x:.5g}", f"{y:.5g}"] for name, (x, y) in zip(names, places, strict=True))
    atomic_text(output / "map.csv", stream.getvalue())
    write_scatter(np.asarray(places, dtype=np.float64), names, axes, output / "map.png")
    return output / "map.csv"


def sample(bundle: OpenBundle, output: Path, count: int, seed: int, box: Sequence[int]) -> list[Path]:
    """Writes new volumes, decoded from codes drawn from N(0, 1), at 1 mm; the same seed gives the same.

    Raises:
        BundleError: the bundle has no latent, or none of this size.
    """
    coder = _coder(bundle)
    if min(box) < 1:
        raise BundleError(f"expected a box of whole numbers from 1 on, got {tuple(box)}")
    try:
        shape = coder.code_shape(box)
    except ValueError as error:
        raise BundleError(f"{error}; see --box") from error
    affine = np.eye(4)
    affine[:3, 3] = [-(side - 1) / 2 for side in box]
    x, y, z = (int(side) for side in box)
    paths = []
    volumes = []
    for number in range(count):
        generator = torch.Generator().manual_seed(seed + number)
        with torch.no_grad(), kept_memory(bundle.device):
            drawn = torch.randn((1, *shape), generator=generator).to(bundle.device)
            volumes.append(coder.decode(drawn)[0, 0].clamp_min(0).cpu().numpy().astype(np.float32))
        paths.append(output / f"sample-{seed + number}.nii.gz")
        write_volume(volumes[-1] * SAMPLE_UNIT, Grid((x, y, z), affine), paths[-1])
    write_sheet([volumes[:8]], [str(seed + n) for n in range(len(volumes[:8]))], output / "samples.png")
    return paths


def _coder(bundle: OpenBundle) -> Any:  # noqa: ANN401 - a network with a code
    if not all(hasattr(bundle.network, part) for part in ("encode", "decode", "code_shape")):
        raise BundleError(f"expected a bundle with an autoencoder, got {bundle.name}, whose network has no latent")
    return bundle.network


def _boxed(image: MetaTensor, box: Sequence[int] | None, factor: int) -> MetaTensor:
    """The image cut or padded around its middle to the box, or to the next multiple of the network's factor."""
    if box is not None and min(box) < factor:
        raise BundleError(f"expected a box of multiples of {factor} from {factor} on, got {tuple(box)}")
    size = box or [-(-side // factor) * factor for side in image.shape[1:]]
    if any(side % factor for side in size):
        raise BundleError(f"expected a box of multiples of {factor}, got {tuple(size)}")
    unit = image.meta.get("unit", 1.0)
    condition = image[1:].amax(dim=(1, 2, 3)) if len(image) > 1 else None
    boxed: MetaTensor = ResizeWithPadOrCrop(list(size))(image)
    if condition is not None:  # what is declared of a scan holds for what is padded, too
        boxed[1:] = condition.as_tensor()[:, None, None, None]
    boxed.meta["unit"] = unit
    return boxed


def _decoded(bundle: OpenBundle, code: StoredCode) -> Volume:
    with torch.no_grad(), kept_memory(bundle.device):
        volume: Tensor = _coder(bundle).decode(code.tensor.to(bundle.device))
    return np.asarray(volume[0, 0].cpu().numpy(), dtype=np.float32)


def _write(bundle: OpenBundle, code: StoredCode, path: Path, *, own_grid: bool) -> Grid:
    require_model(code, bundle.name, bundle.weights_sha256)
    volume, grid = _decoded(bundle, code).clip(0), code.grid
    if not own_grid:
        plain = MetaTensor(torch.from_numpy(volume)[None], affine=torch.from_numpy(code.grid.affine))
        resample = SpatialResample(mode="bilinear", padding_mode="zeros", dtype=torch.float64)
        moved = resample(plain, dst_affine=torch.from_numpy(code.source.affine), spatial_size=code.source.shape)
        volume, grid = np.asarray(moved[0].numpy(), dtype=np.float32), code.source
    write_volume(volume * np.float32(code.unit), grid, path)
    return grid


def _write_walk(bundle: OpenBundle, codes: Sequence[StoredCode], titles: Sequence[str], output: Path) -> list[Path]:
    """Every scan of a walk on the network's grid, and all of them side by side in `walk.png`."""
    paths = []
    for number, (code, title) in enumerate(zip(codes, titles, strict=True)):
        paths.append(output / f"{number:02d}_{title}.nii.gz")
        _write(bundle, code, paths[-1], own_grid=True)
    write_sheet([[_decoded(bundle, code) for code in codes]], titles, output / "walk.png")
    return paths


def _grid_of(image: MetaTensor) -> Grid:
    x, y, z = (int(side) for side in image.shape[1:])
    return Grid((x, y, z), np.asarray(image.affine, dtype=np.float64))


def codes_in(folder: Path) -> list[Path]:
    """Returns the latents in a folder, by name.

    Raises:
        NoInputError: there are none.
    """
    found = sorted(folder.glob("*.npz")) if folder.is_dir() else [folder]
    if not found:
        raise NoInputError(
            f"expected latents (.npz) in {folder.name}, found none; make them with `medgen latent encode`"
        )
    return found
